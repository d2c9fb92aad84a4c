"""The order of training is a pure function of seed and step."""

import math
from collections import Counter

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
    shares = [part for rank in range(2) for part in micro_batches(batch, rank, 2, 4)]
    assert [len(part) for part in shares] == [4] * 6
    assert sorted(index for part in shares for index in part) == batch
    assert micro_batches(batch, 0, 1) == [batch]


@given(count=st.integers(1, 60), world=st.integers(1, 5), size=st.integers(1, 9))
def test_uneven_shares(count, world, size):
    batch = list(range(count))
    try:
        shares = [micro_batches(batch, rank, world, size) for rank in range(world)]
    except ConfigError as error:
        assert "batch_size" in str(error)
        assert count < world * math.ceil(math.ceil(count / world) / size)
        return
    flat = [part for share in shares for part in share]
    assert sorted(index for part in flat for index in part) == batch
    assert len({len(share) for share in shares}) == 1  # all processes take part in every exchange
    assert all(0 < len(part) <= size for part in flat)
