"""The order of training is a pure function of seed and step."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft.core.errors import ConfigError
from craft.training.order import batch_indices, micro_batches


@given(count=st.integers(1, 30), size=st.integers(1, 40), seed=st.integers(0, 9))
def test_each_epoch_is_a_permutation(count, size, seed):
    steps = -(-3 * count // size)
    stream = [index for step in range(steps) for index in batch_indices(count, size, step, seed)]
    for epoch in range(3):
        assert Counter(stream[epoch * count : (epoch + 1) * count]) == Counter(range(count))


def test_depends_on_seed_and_epoch_only():
    assert batch_indices(50, 8, 3, 0) == batch_indices(50, 8, 3, 0)
    assert batch_indices(50, 8, 3, 0) != batch_indices(50, 8, 3, 1)
    assert batch_indices(8, 8, 0, 0) != batch_indices(8, 8, 1, 0)


def test_shares_of_devices_and_micro_batches_make_the_batch():
    batch = list(range(24))
    shares = [part for rank in range(2) for part in micro_batches(batch, rank, 2, 3)]
    assert [len(part) for part in shares] == [4] * 6
    assert sorted(index for part in shares for index in part) == batch
    with pytest.raises(ConfigError, match="multiple"):
        micro_batches(batch, 0, 5, 1)
