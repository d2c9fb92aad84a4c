"""Which samples train, validate and test, and which classes are held out: as the source says, or drawn from a
seed as a pure function of names and ids."""

import math
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar

from craft.core.errors import ConfigError, DataError
from craft.core.seeding import rng
from craft.data.captions import class_text
from craft.data.images import image_key
from craft.data.sample import Raw, Sample

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

LEFT_OUT, OTHERS = "none", "others"
"""What a user says of a split that is not to be read, and the name for all splits with unknown names."""

SplitNames: TypeAlias = Mapping[str, str]
"""The name of a split (lower case) -> "train", "validation", "test" or "none"."""

_COPY = re.compile(r" ?\(\d+\)$")
_SHARD = re.compile(r"[-_.]\d+([-_]of[-_]\d+)?([-_][0-9a-f]{16})?$")
_HUB_SHARD = re.compile(r"\d+-of-\d+")


def split_names(entries: Sequence[str] = ()) -> dict[str, str]:
    """`SPLIT_NAMES`, and what a user says of other names.

    Args:
        entries: NAME=SPLIT, as in "contrast=none". SPLIT is train, validation, test, or none (not read). The
            NAME others is every name that is unknown.

    Raises:
        ConfigError: an entry is not of that form.
    """
    names = dict(SPLIT_NAMES)
    for entry in (part for text in entries for part in text.split(",")):
        name, _, split = (part.strip().lower() for part in entry.partition("="))
        meaning = LEFT_OUT if split == LEFT_OUT else SPLIT_NAMES.get(split)
        if not name or meaning is None:
            raise ConfigError(
                f"--splits takes NAME=SPLIT with train, validation, test or none (not read) as SPLIT, as in "
                f"--splits contrast=none; not {entry!r}."
            )
        names[name] = meaning
    return names


def split_called(name: str, names: SplitNames) -> str | None:
    """What the name of a split means; None if it is unknown."""
    return names.get(name.strip().lower(), names.get(OTHERS))


def unknown_splits(where: str | Path, unknown: Iterable[str]) -> DataError:
    """The error for splits with unknown names: it lists them, with the option that says what they are."""
    listed = list(dict.fromkeys(unknown))
    entries = " ".join(shlex.quote(f"{name}={_suggested(name) or LEFT_OUT}") for name in listed)
    return DataError(
        f"{where} has splits that CRAFT does not know: {', '.join(listed)}. Use 'train', 'validation' or "
        f"'test', or say what they are (or none: not read), for instance --splits {entries}. --splits "
        f"{OTHERS}=none reads none of them. Commands without --splits read what `craft data prepare` wrote."
    )


def _suggested(name: str) -> str | None:
    """The split that a word of a name suggests: "test_v2" and "testmini" are probably for testing."""
    for word in re.findall(r"[a-z]+", name.lower()):
        begins = re.fullmatch(r"(train|test)(val|dev|mini|std|[ab])?", word)
        if split := SPLIT_NAMES.get(begins.group(1) if begins else word):
            return split
    return None


def file_splits(
    paths: Sequence[Path], top: Path | None = None, names: SplitNames = SPLIT_NAMES
) -> dict[Path, str]:
    """The split of each file: by its name ("train-00000-of-00002.parquet"), or by its folder below `top`.

    "" if no file names a split. What all names share does not count ("birds_train", "birds_test"). A single
    file belongs to the split that its name begins with ("test_v2.jsonl").

    Args:
        paths: the files of one data set.
        top: its folder. Only folders below it can name a split; None: no folder can.
        names: what the names mean.

    Raises:
        DataError: some of several names are unknown, or a file is there twice.
    """
    _refuse_copies(paths)
    parents = split_parents(paths, names)
    called = {path: _split_name(path, top, names, parents) for path in paths}
    if len(set(called.values())) == 1:
        name = next(iter(called.values()))
        return dict.fromkeys(paths, names.get(name.lower()) or names.get(_first_word(name), ""))
    short = _without_shared(list(dict.fromkeys(called.values())))
    meanings = {name: names.get(part.lower()) or split_called(name, names) for name, part in short.items()}
    meanings |= {name: names[name.lower()] for name in short if name.lower() in names}
    unknown = [name for name, meaning in meanings.items() if meaning is None]
    is_split = len(unknown) < len(meanings) or any(map(_suggested, unknown))
    if unknown and (is_split or any(_HUB_SHARD.search(path.stem) for path in paths)):
        raise unknown_splits("the data" if top in (None, Path()) else top, unknown)
    return {path: meanings[name] or "" for path, name in called.items()}


def split_parents(paths: Iterable[Path], names: SplitNames = SPLIT_NAMES) -> set[Path]:
    """The folders whose folders are splits, because the folder of one of these files has the name of one."""
    return {path.parent.parent for path in paths if path.parent.name.lower() in names}


def _split_name(path: Path, top: Path | None, names: SplitNames, parents: set[Path]) -> str:
    """The name of the split of a file, without what numbers its parts."""
    stem = _COPY.sub("", path.stem)
    own = _unnumbered(_SHARD.sub("", stem).removeprefix("partial-"))
    inside = top is not None and path.parent != top
    if own.lower() in names or not inside:
        return own
    folder = path.parent.name.removeprefix("partial-")
    return folder if folder.lower() in names or path.parent.parent in parents or own.isdigit() else own


def _first_word(name: str) -> str:
    word = re.match(r"[A-Za-z]+", name)
    return word.group().lower() if word else ""


def _without_shared(listed: list[str]) -> dict[str, str]:
    """Names, and what is left of each without the words at its start and end that all share."""
    parts = [re.split(r"[-_. ]+", name) for name in listed]
    for end in (0, -1):
        while min(map(len, parts)) > 1 and len({part[end] for part in parts}) == 1:
            for part in parts:
                del part[end]
    return {name: _unnumbered("_".join(part)) for name, part in zip(listed, parts, strict=True)}


def _unnumbered(name: str) -> str:
    """ "train" for "train2017"; other names stay as they are."""
    plain = name.rstrip("0123456789")
    return plain if plain.lower() in SPLIT_NAMES else name


def _refuse_copies(paths: Sequence[Path]) -> None:
    """Refuse a file that was downloaded twice ("train (1).parquet" next to "train.parquet"), whose rows would
    count twice."""
    for path in paths:
        first = path.with_stem(_COPY.sub("", path.stem))
        if first != path and first in paths:
            raise DataError(f"{path} is a second copy of {first.name}. Remove one of them.")


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
    about an image stay together, and so do the images of a group. The training samples are cut to
    `raw.train_limit`. Labelled images without a text get the class text.

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
            returned.add(_unit(sample))
    if returned:
        rest, taken = _by_units(train, {_unit(sample) for sample in taken} - returned)
    return rest, with_split(taken, "validation")


def take_pictures(
    samples: list[Sample],
    fraction: float,
    seed: int,
    purpose: str,
    most: int | None = None,
    every_group: bool = False,
) -> tuple[list[Sample], list[Sample]]:
    """(the rest, the taken): a share of the images (or groups of images), at least one, evenly from the
    classes, with all their questions. A single one is not taken."""
    firsts = list({_unit(sample): sample for sample in reversed(samples)}.values())[::-1]
    if len(firsts) < 2:
        return samples, []
    count = max(1, round(fraction * len(firsts)))
    _, taken = take(firsts, count if most is None else min(most, count), seed, purpose, every_group)
    return _by_units(samples, {_unit(sample) for sample in taken})


def _unit(sample: Sample) -> Hashable:
    """What is not divided: the group of the image, or the image."""
    return ("group", sample.group) if sample.group else image_key(sample.image)


def _by_units(samples: list[Sample], chosen: set[Hashable]) -> tuple[list[Sample], list[Sample]]:
    """(the rest, the chosen): the samples of these groups and images apart from the others."""
    rest, taken = [], []
    for sample in samples:
        (taken if _unit(sample) in chosen else rest).append(sample)
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
    kept = set(chosen)
    return [sample for sample in samples if image_key(sample.image) in kept]


def with_split(samples: list[Sample], split: str) -> list[Sample]:
    """The samples with this split."""
    return [sample if sample.split == split else replace(sample, split=split) for sample in samples]
