"""Which samples train, validate and test, and which classes are held out: as the source says, or drawn from a
seed as a pure function of names and ids."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from craft.core.errors import DataError
from craft.core.seeding import rng
from craft.data.captions import class_text
from craft.data.images import image_key
from craft.data.sample import Raw, Sample, distinct

T = TypeVar("T")

OPTIONS = 4
"""The number of options of a multiple-choice question, if there are that many classes (after FOCI, §11)."""

TEST_FRACTION, VALIDATION_FRACTION, VALIDATION_MOST = 0.2, 0.1, 300
"""The share of the images for testing if a source names none; the share of the training images for
validation, and the most images it may be."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
"""Accepted names of splits (lower case), and what they mean."""


def split_of(path: Path, top: Path | None = None) -> str:
    """The split that the name of a file begins with, or that its folder is called; "" if neither says.

    Args:
        path: the file.
        top: the folder of the data set. Only folders below it can name a split; None: no folder can.
    """
    first_word = re.match(r"[A-Za-z]+", path.name)
    folder = "" if top is None or path.parent == top else path.parent.name
    for name in (first_word.group().lower() if first_word else "", folder.lower()):
        if name in SPLIT_NAMES:
            return SPLIT_NAMES[name]
    return ""


def held_out_classes(names: Sequence[str], fraction: float | int = 0.2, seed: int = 0) -> tuple[str, ...]:
    """The classes to hold out of training, drawn from the *set* of names (their order does not matter).

    Takes `fraction` of the classes, rounded half up, but leaves at least four for training, because a
    training question needs four options. So of four classes or fewer, none is held out.

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
    """Take `count` items evenly from all groups; return (the rest, the taken), both in the order of `items`.

    The choice depends on ids, groups, seed and purpose only, never on the order of `items`. The single item
    of a group of one is taken if half of all items are. With `every_group`, each group of two or more gives
    at least one item, even if that takes more than `count`.
    """
    members: dict[str, list[T]] = defaultdict(list)
    for item in sorted(items, key=identity):
        members[group(item)].append(item)
    ranked: list[tuple[float, float, str]] = []
    for name, group_items in members.items():
        draw = rng(seed, purpose, name)
        draw.shuffle(group_items)
        for position, item in enumerate(group_items):
            first = every_group and position == 0 and len(group_items) > 1
            rank = -1.0 if first else (position + 0.5) / len(group_items)
            ranked.append((rank, draw.random(), identity(item)))
    ranked.sort()
    required = sum(rank == -1.0 for rank, _, _ in ranked)
    chosen = {name for _, _, name in ranked[: max(count, required)]}
    rest = [item for item in items if identity(item) not in chosen]
    return rest, [item for item in items if identity(item) in chosen]


def divide(raw: Raw, seed: int = 0) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Training, validation and test samples as the source divides them.

    If the source names no test samples, a stratified fifth of the images is for testing; all questions
    about an image stay together. The training samples are cut to `raw.train_limit`. Labelled images
    without a text get the class text.

    Raises:
        DataError: two samples have the same id.
    """
    ids: dict[str, str] = {}
    for sample in raw.samples:
        if sample.id in ids:
            raise DataError(f"{sample.origin}: '{sample.id}' was listed before, in {ids[sample.id]}.")
        ids[sample.id] = sample.origin
    train = [s for s in raw.samples if s.split in ("", "train")]
    validation = [s for s in raw.samples if s.split == "validation"]
    test = [s for s in raw.samples if s.split == "test"]
    if not test:
        every_group = raw.task == "classification"
        train, test = take_pictures(train, TEST_FRACTION, seed, "test", every_group=every_group)
    if raw.train_limit is not None:
        train = limit_images(train, raw.train_limit, seed)
    train, validation, test = (_with_class_text(part, raw.domain) for part in (train, validation, test))
    return with_split(train, "train"), with_split(validation, "validation"), with_split(test, "test")


def _with_class_text(samples: list[Sample], domain: str) -> list[Sample]:
    """The samples with a text for each labelled image that has neither a text nor an answer."""
    return [
        replace(sample, text=class_text(domain, sample.label))
        if sample.label is not None and not sample.text and not sample.answer
        else sample
        for sample in samples
    ]


def split_off_validation(train: list[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """(training, validation): a slice of the training images for validation; with fewer than five samples,
    none. A class that would lose all its training images keeps one."""
    if len(train) < 5:
        return train, []
    rest, taken = take_pictures(train, VALIDATION_FRACTION, seed, "validation", most=VALIDATION_MOST)
    trained, returned = {None, *(sample.label for sample in rest)}, set[Hashable]()
    for sample in sorted(taken, key=lambda s: s.id):
        if sample.label not in trained:
            trained.add(sample.label)
            returned.add(image_key(sample.image))
    if returned:
        rest, taken = _by_pictures(train, {image_key(sample.image) for sample in taken} - returned)
    return rest, with_split(taken, "validation")


def take_pictures(
    samples: list[Sample],
    fraction: float,
    seed: int,
    purpose: str,
    most: int | None = None,
    every_group: bool = False,
) -> tuple[list[Sample], list[Sample]]:
    """(the rest, the taken): a share of the images, at least one, evenly from the classes, with all their
    questions. A single image is not taken."""
    firsts = distinct(samples)
    if len(firsts) < 2:
        return samples, []
    count = max(1, round(fraction * len(firsts)))
    _, taken = take(firsts, count if most is None else min(most, count), seed, purpose, every_group)
    return _by_pictures(samples, {image_key(sample.image) for sample in taken})


def _by_pictures(samples: list[Sample], chosen: set[Hashable]) -> tuple[list[Sample], list[Sample]]:
    """(the rest, the chosen): the samples of these images, by `image_key`, apart from the others."""
    rest, taken = [], []
    for sample in samples:
        (taken if image_key(sample.image) in chosen else rest).append(sample)
    return rest, taken


def take(
    samples: Sequence[Sample], count: int, seed: int, purpose: str, every_group: bool = False
) -> tuple[list[Sample], list[Sample]]:
    """(the rest, the taken): `count` samples evenly from the classes (see `stratified`)."""
    return stratified(
        samples,
        count,
        identity=lambda s: s.id,
        group=lambda s: s.concept,
        seed=seed,
        purpose=purpose,
        every_group=every_group,
    )


def limit_images(samples: list[Sample], count: int, seed: int) -> list[Sample]:
    """All samples of at most `count` random images, in the order of `samples`."""
    firsts: dict[Hashable, str] = {}
    for sample in sorted(samples, key=lambda s: s.id):
        firsts.setdefault(image_key(sample.image), sample.id)
    pictures = sorted(firsts, key=lambda key: firsts[key])  # in an order that does not depend on paths
    chosen = rng(seed, "training subset").sample(pictures, min(count, len(pictures)))
    return _by_pictures(samples, set(chosen))[1]


def with_split(samples: list[Sample], split: str) -> list[Sample]:
    """The samples with this split."""
    return [sample if sample.split == split else replace(sample, split=split) for sample in samples]
