"""Which samples train, which validate and which test: as the source says, or drawn once for all seeds."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

from craft.core.errors import DataError
from craft.core.seeding import rng
from craft.data.holdout import stratified
from craft.data.images import image_key
from craft.data.raw import Raw, TrainLimit
from craft.data.sample import Sample

TEST_FRACTION, VALIDATION_FRACTION, VALIDATION_MOST = 0.2, 0.1, 300
"""Shares of the pictures kept for testing where a source names none, and of the training pictures kept for
validation, and its limit."""


def divide(raw: Raw, seed: int = 0) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Training, validation and test samples as the source divides them.

    Where it names no test samples, a stratified fifth of the pictures is for testing; all questions about a
    picture go together. The training samples are cut to the source's own subset, if it has one.

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
        train = subset(train, raw.train_limit, seed)
    return named(train, "train"), named(validation, "validation"), named(test, "test")


def split_off_validation(train: list[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """(training, validation): a slice of the training pictures for validation; of few pictures, none. A class
    that would lose all its training pictures keeps one."""
    if len(train) < 5:
        return train, []
    rest, taken = take_pictures(train, VALIDATION_FRACTION, seed, "validation", most=VALIDATION_MOST)
    trained, back = {None, *(sample.label for sample in rest)}, set[Hashable]()
    for sample in sorted(taken, key=lambda s: s.id):
        if sample.label not in trained:
            trained.add(sample.label)
            back.add(image_key(sample.image))
    if back:
        gone = {key for sample in taken if (key := image_key(sample.image)) not in back}
        rest = [sample for sample in train if image_key(sample.image) not in gone]
        taken = [sample for sample in taken if image_key(sample.image) in gone]
    return rest, named(taken, "validation")


def take_pictures(
    samples: list[Sample],
    fraction: float,
    seed: int,
    purpose: str,
    most: int | None = None,
    every_group: bool = False,
) -> tuple[list[Sample], list[Sample]]:
    """(the rest, the taken): a share of the pictures, at least one, evenly from the classes, with all their
    questions. A single picture is not taken."""
    keys = [image_key(sample.image) for sample in samples]
    firsts = list(dict(zip(reversed(keys), reversed(samples), strict=True)).values())[::-1]
    if len(firsts) < 2:
        return samples, []
    count = max(1, round(fraction * len(firsts)))
    _, taken = take(firsts, count if most is None else min(most, count), seed, purpose, every_group)
    chosen = {image_key(sample.image) for sample in taken}
    pairs = list(zip(keys, samples, strict=True))
    return [s for key, s in pairs if key not in chosen], [s for key, s in pairs if key in chosen]


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


def subset(samples: list[Sample], limit: TrainLimit, seed: int) -> list[Sample]:
    """At most so many samples, or pictures with all their samples, drawn by lot, in the given order."""
    if limit.by == "question":
        names = sorted(sample.id for sample in samples)
        kept = set(rng(seed, "training subset").sample(names, min(limit.count, len(names))))
        return [sample for sample in samples if sample.id in kept]
    firsts: dict[object, str] = {}
    for sample in sorted(samples, key=lambda s: s.id):
        firsts.setdefault(image_key(sample.image), sample.id)
    pictures = sorted(firsts, key=lambda key: firsts[key])  # in an order that does not depend on paths
    chosen = set(rng(seed, "training subset").sample(pictures, min(limit.count, len(pictures))))
    return [sample for sample in samples if image_key(sample.image) in chosen]


def named(samples: list[Sample], split: str) -> list[Sample]:
    """The samples with this split."""
    return [sample if sample.split == split else replace(sample, split=split) for sample in samples]
