"""The order of training samples: pure functions of a seed, so that a run can resume at any step."""

import itertools
import math

import torch

from craft.core.errors import ConfigError
from craft.core.seeding import generator


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The indices, among `count` samples, of the batch of step number `step` (from 0).

    Each epoch is a new seeded permutation of the samples. A batch may contain the end of one epoch and the
    beginning of the next, so no sample is ever dropped.
    """
    first = step * batch_size
    chosen: list[int] = []
    while len(chosen) < batch_size:
        epoch, offset = divmod(first + len(chosen), count)
        order = torch.randperm(count, generator=generator(seed, "order", epoch))
        chosen += order[offset : offset + batch_size - len(chosen)].tolist()
    return chosen


def micro_batches(indices: list[int], rank: int, world: int, size: int | None = None) -> list[list[int]]:
    """This process's share of a batch, divided into micro-batches of at most `size` samples (None: one).

    Shares and micro-batches may differ by one sample; every process has the same number of micro-batches.

    Args:
        indices: the batch.
        rank: the number of this process.
        world: the number of processes.
        size: the largest number of samples in a micro-batch.

    Raises:
        ConfigError: there are fewer samples than micro-batches.
    """
    largest = math.ceil(len(indices) / world)
    pieces = 1 if size is None else math.ceil(largest / size)
    if len(indices) // world < pieces:
        raise ConfigError(
            f"A batch of {len(indices)} cannot be divided into {pieces} micro-batches for each of {world} "
            "processes: raise batch_size to a multiple of processes x micro_batch, or start fewer processes."
        )
    share = indices[rank::world]
    bounds = [len(share) * piece // pieces for piece in range(pieces + 1)]
    return [share[start:end] for start, end in itertools.pairwise(bounds)]
