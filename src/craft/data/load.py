"""`load_data`: an embedded domain, a folder of class folders or a JSONL becomes a `Data` set."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from craft.core.errors import DataError
from craft.data.choices import AnswerWith, Distractors, answer_for, multiple_choice
from craft.data.domains import EMBEDDED
from craft.data.folder import read_folder
from craft.data.holdout import held_out_classes, stratified
from craft.data.jsonl import read_jsonl
from craft.data.raw import Raw
from craft.data.sample import Data, Sample

Similarity: TypeAlias = np.ndarray | Callable[[tuple[str, ...]], np.ndarray] | None
"""[C, C] similarities of the class names in the order of `Data.classes`, or a function from names to it."""

TEST_FRACTION, VALIDATION_FRACTION, VALIDATION_MOST = 0.2, 0.1, 300
"""Shares of your own data kept for testing and of the training set kept for validation, and its limit."""


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
) -> Data:
    """Read a data set, split it, hold classes out, and write the multiple-choice questions.

    The division into training and test depends on `split_seed` alone, so that an encoder adapted with one
    seed is never tested on its training images under another. `seed` settles the held-out classes, the
    validation slice, the distractors and the order of the options.

    Args:
        data: the name of an embedded domain, a folder of class folders, or a JSONL file ("./apparel" is a
            folder of that name, "apparel" the embedded domain).
        root: folder that relative paths (of `data`, and of the images in a JSONL) start from.
        answer_with: "option" (its text) or "letter".
        distractors: "random", or "hard" by `similarity`.
        unseen_fraction: share of the classes of a classification set held out of training.
        limit: at most this many samples in each split, taken evenly from the classes.
        held_out: exactly these classes are held out instead (to evaluate an encoder by its own manifest).
        domain: what the images are of, in words, for your own files; else the folder's name.

    Raises:
        DataError: nothing there (with a did-you-mean), no samples, a single class, a broken row, choices
            without the answer, repeated ids, missing images. Pictures are decoded by `verify_images`.

    Source: §4.1, §11 (four options after FOCI, 20 % of the labels held out); splits and seeds are ours.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, not {limit}.")
    raw = _read(data, root, answer_with, domain)
    train, validation, test = _splits(raw, split_seed)
    classes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    if raw.task == "classification":
        classes = tuple(sorted({str(s.label) for s in raw.samples}))
        if len(classes) < 2:
            raise DataError(
                f"{data} has a single class, '{raw.samples[0].label}'. Give at least two classes: "
                "a question needs a wrong option too."
            )
        unseen = _unseen(raw, train, classes, unseen_fraction, seed, held_out)
        if train and len({s.label for s in train} - set(unseen)) < 2:
            raise DataError(f"{data} has fewer than two classes left for training; hold fewer classes out.")
        matrix = similarity(classes) if callable(similarity) else similarity
        settings = (classes, distractors, seed, answer_with, matrix)
        train = _ask([s for s in train if s.label not in unseen], unseen, True, *settings)
        validation = _ask([s for s in validation if s.label not in unseen], unseen, True, *settings)
        test = _ask(test, unseen, False, *settings)
    elif train and len({s.concept for s in raw.samples}) < 2:
        raise DataError(
            f"{data}: every row has the same answer, '{train[0].concept}'. "
            "Give rows with at least two different answers."
        )
    if not validation and len(train) >= 5:
        count = min(VALIDATION_MOST, max(1, round(VALIDATION_FRACTION * len(train))))
        train, validation = _take(train, count, seed, "validation")
    train, validation, test = (
        _named(_take(part, limit, seed, f"limit {name}")[1] if limit is not None else part, name)
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
    )


def _read(data: str | Path, root: str | Path | None, answer_with: AnswerWith, domain: str | None) -> Raw:
    if str(data) in EMBEDDED:
        return EMBEDDED[str(data)].load()
    path = Path(data).expanduser()
    base = Path(root).expanduser() if root is not None else None
    if base is not None and not path.exists():
        path = base / path
    if path.is_dir():
        return read_folder(path, domain)
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json") and path.is_file():
        return read_jsonl(path, base, answer_with, domain)
    if path.exists():
        raise DataError(f"{path} is neither a folder of class folders nor a .jsonl file.")
    beside = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(data), [*EMBEDDED, *beside], 1, 0.6)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise DataError(
        f"there is no data at '{data}', and no embedded domain of that name.{hint} "
        f"Embedded: {', '.join(EMBEDDED)}; or give a folder of class folders, or a .jsonl file."
    )


def _splits(raw: Raw, seed: int) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """As the source says; where it names no test samples, a stratified fifth of the training samples."""
    train = [s for s in raw.samples if s.split in ("", "train")]
    validation = [s for s in raw.samples if s.split == "validation"]
    test = [s for s in raw.samples if s.split == "test"]
    if not test and len(train) > 1:
        count = max(1, round(TEST_FRACTION * len(train)))
        train, test = _take(train, count, seed, "test", every_group=raw.task == "classification")
    return train, validation, test


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
        asked.append(replace(sample, seen=sample.label not in unseen))
    return asked


def _without(sample: Sample, unseen: tuple[str, ...], answer_with: AnswerWith) -> Sample | None:
    """The sample's own options less the held-out classes; None where no wrong option stays."""
    names = {name.casefold() for name in unseen}
    right = sample.answer_text
    options = tuple(choice for choice in sample.choices if choice.casefold() not in names)
    if len(options) < 2:
        return None
    answer = answer_for(options, right, answer_with)
    return replace(sample, choices=options, answer=answer, correct=options.index(right))


def _take(
    samples: list[Sample], count: int, seed: int, purpose: str, every_group: bool = False
) -> tuple[list[Sample], list[Sample]]:
    return stratified(
        samples,
        count,
        identity=lambda s: s.id,
        group=lambda s: s.concept,
        seed=seed,
        purpose=purpose,
        every_group=every_group,
    )


def _named(samples: list[Sample], split: str) -> list[Sample]:
    return [sample if sample.split == split else replace(sample, split=split) for sample in samples]
