"""The order of training: pure functions of a seed, so that any step can be asked for at any time."""

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


def micro_batches(indices: list[int], rank: int, world: int, accumulation: int) -> list[list[int]]:
    """This process's share of a batch, in `accumulation` equal parts.

    Raises:
        ConfigError: the batch cannot be divided evenly.
    """
    if len(indices) % (world * accumulation):
        raise ConfigError(
            f"batch_size is {len(indices)} and must be a multiple of accumulation x devices, "
            f"{accumulation} x {world}."
        )
    mine = indices[rank::world]
    size = len(mine) // accumulation
    return [mine[start : start + size] for start in range(0, len(mine), size)]
