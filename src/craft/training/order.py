"""The order of training: pure functions of a seed, so that any step can be asked for at any time."""

import itertools
import math

import torch

from craft.core.errors import ConfigError
from craft.core.seeding import generator


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Which of `count` samples step number `step` (from 0) trains on.

    The samples come in a new seeded permutation each epoch; epochs follow one another without a gap, so a
    batch may end one epoch and begin the next, and no sample is ever dropped.
    """
    first = step * batch_size
    chosen: list[int] = []
    while len(chosen) < batch_size:
        epoch, offset = divmod(first + len(chosen), count)
        order = torch.randperm(count, generator=generator(seed, "order", epoch))
        chosen += order[offset : offset + batch_size - len(chosen)].tolist()
    return chosen


def micro_batches(indices: list[int], rank: int, world: int, size: int | None = None) -> list[list[int]]:
    """This process's share of a batch, cut into micro-batches of at most `size` samples (None: in one piece).

    Shares and micro-batches may differ by one sample; every process has the same number of micro-batches.

    Raises:
        ConfigError: there are fewer samples than micro-batches.
    """
    largest = math.ceil(len(indices) / world)
    pieces = 1 if size is None else math.ceil(largest / size)
    if len(indices) // world < pieces:
        raise ConfigError(
            f"A batch of {len(indices)} cannot be cut into {pieces} micro-batches for each of {world} "
            "processes: raise batch_size to a multiple of processes x micro_batch, or start fewer processes."
        )
    mine = indices[rank::world]
    cuts = [len(mine) * piece // pieces for piece in range(pieces + 1)]
    return [mine[start:end] for start, end in itertools.pairwise(cuts)]
