"""`load_data`: an embedded domain, a benchmark, a manifest or files of your own become a `Data` set."""

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from craft.core.errors import DataError
from craft.core.files import user_path
from craft.data.benchmarks import BENCHMARKS
from craft.data.choices import DIRECTIVES, AnswerWith, Distractors, answer_for, multiple_choice
from craft.data.domains import EMBEDDED
from craft.data.folder import read_folder
from craft.data.holdout import held_out_classes
from craft.data.hub import HUB, hub_folder
from craft.data.manifest import MANIFEST, read_manifest
from craft.data.questions import Fetch, read_questions
from craft.data.raw import Raw
from craft.data.sample import Data, Sample, normalise
from craft.data.splits import divide, split_off_validation, take
from craft.data.tables import TABLES, tables_in

Similarity: TypeAlias = np.ndarray | Callable[[tuple[str, ...]], np.ndarray] | None
"""[C, C] similarities of the class names in the order of `Data.classes`, or a function from names to it."""


def load_data(
    data: str | Path,
    root: str | Path | None = None,
    seed: int = 0,
    answer_with: AnswerWith = "option",
    distractors: Distractors = "random",
    unseen_fraction: float | int = 0.2,
    limit: int | None = None,
    similarity: Similarity = None,
    *,
    held_out: Sequence[str] | None = None,
    split_seed: int = 0,
    domain: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Data:
    """Read a data set, split it, hold classes out, and write the multiple-choice questions.

    The division into training and test depends on `split_seed` alone, so that an encoder adapted with one
    seed is never tested on its training images under another. `seed` settles the held-out classes, the
    validation slice, the distractors and the order of the options.

    Args:
        data: the name of an embedded domain or a benchmark, a folder of class folders, a table of questions
            (JSONL, JSON, CSV, parquet, WebDataset), a folder written by `craft data prepare`, or a hub data
            set as "hub:OWNER/NAME" ("./apparel" is a folder of that name, "apparel" the embedded domain).
        root: of a benchmark, the folder it lies in; else the folder that relative paths (of `data`, and of
            the images in a table) start from.
        answer_with: "option" (its text) or "letter".
        distractors: "random", or "hard" by `similarity`.
        unseen_fraction: share of the classes of a classification set held out of training.
        limit: at most this many samples in each split, taken evenly from the classes.
        held_out: exactly these classes are held out instead (to evaluate an encoder by its own manifest).
        domain: what the images are of, in words, for your own files; else the folder's name.
        columns: our field -> the column of your table, where they differ.

    Raises:
        DataError: nothing there (with a did-you-mean), no samples, a single class, a broken row, choices
            without the answer, repeated ids, missing images. Pictures are decoded by `verify_images`.

    Source: §4.1, §11 (four options after FOCI, 20 % of the labels held out); splits and seeds are ours.
    """
    raw = read_data(data, root, domain, columns)
    return compose(
        raw,
        seed,
        answer_with,
        distractors,
        unseen_fraction,
        limit,
        similarity,
        held_out=held_out,
        split_seed=split_seed,
    )


def compose(
    raw: Raw,
    seed: int = 0,
    answer_with: AnswerWith = "option",
    distractors: Distractors = "random",
    unseen_fraction: float | int = 0.2,
    limit: int | None = None,
    similarity: Similarity = None,
    *,
    held_out: Sequence[str] | None = None,
    split_seed: int = 0,
) -> Data:
    """Divide samples that were read, hold classes out, write the questions: the second half of `load_data`.

    Args:
        raw: from `read_data`.
        seed, answer_with, distractors, unseen_fraction, limit, similarity, held_out, split_seed: as there.

    Raises:
        DataError: as `load_data`.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, not {limit}.")
    where = raw.name if raw.name in BENCHMARKS else raw.source or raw.name
    train, validation, test = divide(raw, split_seed)
    classes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    if raw.task == "classification":
        classes = tuple(sorted({str(s.label) for s in raw.samples}))
        if len(classes) < 2:
            raise DataError(
                f"{where} has a single class, '{raw.samples[0].label}'. Give at least two classes: "
                "a question needs a wrong option too."
            )
        _distinct(raw.samples, classes)
        unseen = _unseen(raw, train, classes, unseen_fraction, seed, held_out)
        if train:
            _enough_classes(where, train, unseen)
        matrix = similarity(classes) if callable(similarity) else similarity
        settings = (classes, distractors, seed, answer_with, matrix)
        train = _ask([s for s in train if s.label not in unseen], unseen, True, *settings)
        validation = _ask([s for s in validation if s.label not in unseen], unseen, True, *settings)
        test = _ask(test, unseen, False, *settings)
    elif raw.draw is not None:
        classes = raw.classes
        unseen = _unseen(raw, [], classes, unseen_fraction, seed, held_out)
        train = raw.draw(unseen) if unseen else train
        test = [replace(sample, seen=sample.label not in unseen) for sample in test]
    elif train and len({s.concept for s in raw.samples}) < 2:
        raise DataError(
            f"{where}: every row has the same answer, '{train[0].concept}'. "
            "Give rows with at least two different answers."
        )
    if not validation:
        train, validation = split_off_validation(train, seed)
    train, validation, test = (
        [
            _worded(sample, answer_with)
            for sample in (take(part, limit, seed, f"limit {name}")[1] if limit is not None else part)
        ]
        for name, part in (("train", train), ("validation", validation), ("test", test))
    )
    return Data(
        name=raw.name,
        task=raw.task,
        domain=raw.domain,
        train=train,
        validation=validation,
        test=test,
        classes=classes,
        held_out=unseen,
        licence=raw.licence,
        source=raw.source,
        seed=seed,
        notes=raw.notes,
    )


def whole(raw: Raw, split_seed: int = 0) -> Data:
    """Every sample in its split, with all classes and without questions for labelled pictures: what
    `check_data` looks at.

    Raises:
        DataError: two samples have the same id.
    """
    train, validation, test = divide(raw, split_seed)
    return Data(raw.name, raw.task, raw.domain, train, validation, test)


def read_data(
    data: str | Path,
    root: str | Path | None = None,
    domain: str | None = None,
    columns: Mapping[str, str] | None = None,
    fetch: Fetch | None = None,
) -> Raw:
    """The samples of a data set as they are found, before anything is drawn by lot.

    Args:
        data, root, domain: as in `load_data`.
        columns, fetch: of tables, as in `read_questions`.

    Raises:
        DataError: as `load_data`.
    """
    data = as_setting(data)
    if data in EMBEDDED:
        return EMBEDDED[data].load()
    if data in BENCHMARKS:
        return BENCHMARKS[data].load(root)
    path = hub_folder(data) if data.startswith(HUB) else user_path(data)
    base = user_path(root) if root is not None else None
    if base is not None and not path.exists():
        path = base / path
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return read_manifest(path, base)
        if tables := tables_in(path):
            return read_questions(tables, base, domain, columns, fetch, path)
        return read_folder(path, domain)
    if path.suffix.lower() in TABLES and path.is_file():
        return read_questions([path], base, domain, columns, fetch)
    if path.exists():
        raise DataError(
            f"{path} is neither a folder of class folders nor a table of questions ({', '.join(TABLES)})."
        )
    beside = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(data, [*EMBEDDED, *BENCHMARKS, *beside], 1, 0.6)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise DataError(
        f"there is no data at '{data}', and no embedded domain or benchmark of that name.{hint} "
        f"Embedded: {', '.join(EMBEDDED)}; or a benchmark (`craft data list`), a folder of class folders, or "
        f"a table ({', '.join(TABLES)})."
    )


def as_setting(data: str | Path) -> str:
    """Data as settings name them. A `Path` to a folder that is called like an embedded domain or a benchmark
    gets back the "./" that `Path("./apparel")` has lost."""
    text = str(data)
    known = text in EMBEDDED or text in BENCHMARKS
    return os.path.join(os.curdir, text) if known and isinstance(data, Path) and data.exists() else text


def short_name(data: str | Path) -> str:
    """What a folder made for this data is called: "birds" for birds.jsonl, and the folder's own name for ".",
    "..", which must not lead a path of ours elsewhere."""
    return Path(os.path.abspath(data)).stem or "data"


def _distinct(samples: Sequence[Sample], classes: tuple[str, ...]) -> None:
    """Refuse classes that differ in case or spaces alone: one of them might be held out of training."""
    found: dict[str, str] = {}
    for name in classes:
        if (other := found.setdefault(normalise(name), name)) != name:
            where = next(sample.origin for sample in samples if sample.label == name)
            raise DataError(f"'{other}' and '{name}' are one class in two spellings ({where}). Use one.")


def _enough_classes(where: str, train: Sequence[Sample], unseen: Sequence[str]) -> None:
    """Refuse training with fewer than two classes."""
    with_pictures = {str(s.label) for s in train}
    if len(with_pictures - set(unseen)) >= 2:
        return
    if len(with_pictures) >= 2:
        raise DataError(f"{where} has fewer than two classes left for training; hold fewer classes out.")
    raise DataError(
        f"{where} has training pictures of the class '{train[0].label}' alone, the others have test or "
        "validation pictures only. Give at least two classes two pictures each."
    )


def _unseen(
    raw: Raw,
    train: list[Sample],
    classes: tuple[str, ...],
    fraction: float | int,
    seed: int,
    held_out: Sequence[str] | None,
) -> tuple[str, ...]:
    """The held-out classes, and with them every class that has no training image anyway."""
    if held_out is not None:
        if strangers := sorted(set(held_out) - set(classes)):
            raise DataError(f"{raw.name} has no class {', '.join(strangers)}, which is to be held out.")
        return tuple(sorted(set(held_out)))
    if not train:
        return held_out_classes(classes, fraction, seed)
    trained = {str(s.label) for s in train}
    return tuple(sorted({*held_out_classes(sorted(trained), fraction, seed), *(set(classes) - trained)}))


def _ask(
    samples: list[Sample],
    unseen: tuple[str, ...],
    training: bool,
    classes: tuple[str, ...],
    distractors: Distractors,
    seed: int,
    answer_with: AnswerWith,
    similarity: np.ndarray | None,
) -> list[Sample]:
    """Write the questions; in training no option names a held-out class."""
    exclude = unseen if training else ()
    asked: list[Sample] = []
    for sample in samples:
        if not sample.choices:
            sample = multiple_choice(
                sample,
                classes,
                distractors,
                seed=seed,
                answer_with=answer_with,
                similarity=similarity,
                exclude=exclude,
            )
        elif training:
            kept = _without(sample, unseen, answer_with)
            if kept is None:
                continue
            sample = kept
        seen = sample.label not in unseen
        asked.append(sample if seen == sample.seen else replace(sample, seen=seen))
    return asked


def _without(sample: Sample, unseen: tuple[str, ...], answer_with: AnswerWith) -> Sample | None:
    """The sample's own options less the held-out classes; None where no wrong option stays."""
    names = set(map(normalise, unseen))
    right = sample.answer_text
    options = tuple(choice for choice in sample.choices if normalise(choice) not in names)
    if len(options) < 2:
        return None
    answer = answer_for(options, right, answer_with)
    return replace(sample, choices=options, answer=answer, correct=options.index(right))


def _worded(sample: Sample, answer_with: AnswerWith) -> Sample:
    """The sample with its answer as it is asked for: the option's letter or text."""
    if sample.correct is None:
        return sample
    answer = answer_for(sample.choices, sample.choices[sample.correct], answer_with)
    directive = DIRECTIVES[answer_with] if sample.directive is None else sample.directive
    if (sample.answer, sample.directive) == (answer, directive):
        return sample
    return replace(sample, answer=answer, directive=directive)
