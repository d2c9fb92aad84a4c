"""Which classes and which samples are kept out: pure functions of names, ids and a seed."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from craft.core.errors import DataError
from craft.core.seeding import rng

T = TypeVar("T")

OPTIONS = 4
"""How many options a multiple-choice question has where there are that many classes (after FOCI, §11)."""


def held_out_classes(names: Sequence[str], fraction: float | int = 0.2, seed: int = 0) -> tuple[str, ...]:
    """The classes to keep out of training, drawn from the *set* of names (their order does not matter).

    `fraction` of the classes, rounded half up, but never so many that fewer than four stay for training:
    a training question needs four options. So nothing is held out of four classes or fewer.

    Raises:
        DataError: `fraction` is not in [0, 1).

    Source: §4.1 and §11, "we omit 20% of the label classes during training"; the seeding is ours.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"the fraction of unseen classes must be in [0, 1), not {fraction}.")
    unique = sorted(set(names))
    count = min(math.floor(fraction * len(unique) + 0.5), max(0, len(unique) - OPTIONS))
    return tuple(sorted(rng(seed, "held-out classes").sample(unique, count)))


def stratified(
    items: Sequence[T],
    count: int,
    *,
    identity: Callable[[T], str],
    group: Callable[[T], str],
    seed: int,
    purpose: str,
    every_group: bool = False,
) -> tuple[list[T], list[T]]:
    """Take `count` items evenly from all groups; return (the rest, the taken), both in the given order.

    The choice depends on ids, groups, seed and purpose only, never on the order of `items`. A group of one
    is taken where half of all are. With `every_group`, each group of two or more gives at least one item,
    even if that takes more than `count`.
    """
    members: dict[str, list[T]] = defaultdict(list)
    for item in sorted(items, key=identity):
        members[group(item)].append(item)
    ranked: list[tuple[float, float, str]] = []
    for name, own in members.items():
        draw = rng(seed, purpose, name)
        draw.shuffle(own)
        for place, item in enumerate(own):
            first = every_group and place == 0 and len(own) > 1
            ranked.append((-1.0 if first else (place + 0.5) / len(own), draw.random(), identity(item)))
    ranked.sort()
    needed = sum(rank == -1.0 for rank, _, _ in ranked)
    chosen = {name for _, _, name in ranked[: max(count, needed)]}
    rest = [item for item in items if identity(item) not in chosen]
    return rest, [item for item in items if identity(item) in chosen]
