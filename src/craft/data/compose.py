"""Samples as read become a `Data` set: splits, held-out classes, multiple-choice questions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from craft.core.errors import DataError
from craft.data.benchmarks import BENCHMARKS
from craft.data.choices import DIRECTIVES, AnswerWith, Distractors, answer_for, multiple_choice
from craft.data.levels import levelled
from craft.data.sample import Data, Raw, Sample
from craft.data.spelling import difference, normalise
from craft.data.splits import divide, held_out_classes, split_off_validation, take

Similarity: TypeAlias = np.ndarray | Callable[[tuple[str, ...]], np.ndarray] | None
"""[C, C] similarities of the class names in the order of `Data.classes`, or a function from names to it."""


@dataclass(frozen=True)
class Composition:
    """How `compose` makes a data set of samples; the attributes are parameters of `load_data`."""

    seed: int = 0
    answer_with: AnswerWith = "option"
    distractors: Distractors = "random"
    unseen_fraction: float | int = 0.2
    limit: int | None = None
    similarity: Similarity = None
    held_out: Sequence[str] | None = None
    split_seed: int = 0


def compose(raw: Raw, composition: Composition = Composition()) -> Data:
    """Divide samples, hold classes out and write the questions: the second half of `load_data`.

    Args:
        raw: from `read_data`.
        composition: how.

    Raises:
        DataError: as `load_data`.
    """
    seed, limit = composition.seed, composition.limit
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, not {limit}.")
    raw = levelled(raw)
    where = raw.name if raw.name in BENCHMARKS else raw.source or raw.name
    train, validation, test = divide(raw, composition.split_seed)
    classes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    if raw.task == "classification":
        classes = _classes(raw, where)
        unseen = _unseen(raw.name, train, classes, composition)
        if train:
            _check_training_classes(where, train, unseen)
        similarity = composition.similarity
        write = partial(
            multiple_choice,
            class_names=classes,
            distractors=composition.distractors,
            seed=seed,
            answer_with=composition.answer_with,
            similarity=similarity(classes) if callable(similarity) else similarity,
        )
        train, validation = _without(unseen, train, write), _without(unseen, validation, write)
        test = [sample if sample.choices else write(sample) for sample in test]
        test = [replace(sample, seen=sample.label not in unseen) for sample in test]
    elif raw.draw is not None:
        classes = raw.classes
        unseen = _unseen(raw.name, [], classes, composition)
        train = raw.draw(unseen) if unseen else train
        test = [replace(sample, seen=sample.label not in unseen) for sample in test]
    elif train and len({s.concept for s in raw.samples}) < 2:
        raise DataError(
            f"{where}: every row has the same answer, '{train[0].concept}'. "
            "Use rows with at least two different answers."
        )
    if not validation:
        train, validation = split_off_validation(train, seed)
    splits, tested = {"train": train, "validation": validation, "test": test}, test
    for name, samples in splits.items():
        if limit is not None:
            samples = take(samples, limit, seed, f"limit {name}")[1]
        splits[name] = [_worded(sample, composition.answer_with) for sample in samples]
    return Data(
        name=raw.name,
        task=raw.task,
        domain=raw.domain,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        classes=classes,
        held_out=unseen,
        licence=raw.licence,
        source=raw.source,
        seed=seed,
        notes=raw.notes,
        caveats=raw.caveats,
        tested=tested,
    )


def whole(raw: Raw, split_seed: int = 0) -> Data:
    """Every sample in its split, with all classes, and labelled images without questions: the data set that
    `check_data` inspects.

    Raises:
        DataError: two samples have the same id.
    """
    train, validation, test = divide(levelled(raw), split_seed)
    return Data(raw.name, raw.task, raw.domain, train, validation, test, caveats=raw.caveats)


def _classes(raw: Raw, where: str) -> tuple[str, ...]:
    """The labels, sorted. Refuses a single class, and two that differ in case or spaces alone, because one
    of them might be held out of training."""
    classes = tuple(sorted({str(s.label) for s in raw.samples}))
    if len(classes) < 2:
        raise DataError(
            f"{where} has a single class, '{raw.samples[0].label}'. Use at least two classes: "
            "a question needs a wrong option too."
        )
    spellings: dict[str, str] = {}
    for name in classes:
        if (other := spellings.setdefault(normalise(name), name)) != name:
            origin = next(sample.origin for sample in raw.samples if sample.label == name)
            raise DataError(
                f"'{other}' and '{name}' are one class in two spellings ({origin}): they differ "
                f"{difference(other, name)}. Use one."
            )
    return classes


def _unseen(
    name: str, train: Sequence[Sample], classes: tuple[str, ...], composition: Composition
) -> tuple[str, ...]:
    """The held-out classes, which include every class without a training image."""
    if composition.held_out is not None:
        if strangers := sorted(set(composition.held_out) - set(classes)):
            raise DataError(f"{name} has no class {', '.join(strangers)}, which is to be held out.")
        return tuple(sorted(set(composition.held_out)))
    fraction, seed = composition.unseen_fraction, composition.seed
    if not train:
        return held_out_classes(classes, fraction, seed)
    trained = {str(s.label) for s in train}
    return tuple(sorted({*held_out_classes(sorted(trained), fraction, seed), *(set(classes) - trained)}))


def _check_training_classes(where: str, train: Sequence[Sample], unseen: Sequence[str]) -> None:
    """Refuse training with fewer than two classes."""
    with_pictures = {str(s.label) for s in train}
    if len(with_pictures - set(unseen)) >= 2:
        return
    if len(with_pictures) >= 2:
        raise DataError(f"{where} leaves fewer than two classes for training; hold fewer classes out.")
    raise DataError(
        f"{where} has training images of the class '{train[0].label}' alone; the other classes have test "
        "or validation images only. Use at least two classes with two images each."
    )


def _without(unseen: tuple[str, ...], samples: list[Sample], write: Callable[..., Sample]) -> list[Sample]:
    """Questions about seen classes for training, no option of which names a held-out class. A question that
    would have no wrong option is left out."""
    names, questions = set(map(normalise, unseen)), []
    for sample in samples:
        if sample.label in unseen:
            continue
        if not sample.choices:
            questions.append(write(sample, exclude=unseen))
            continue
        options = tuple(choice for choice in sample.choices if normalise(choice) not in names)
        if len(options) > 1:
            correct = options.index(sample.answer_text)
            questions.append(replace(sample, choices=options, correct=correct))
    return questions


def _worded(sample: Sample, answer_with: AnswerWith) -> Sample:
    """The sample with its answer as the question asks for it: the option's letter or text."""
    if sample.correct is None:
        return sample
    answer = answer_for(sample.choices, sample.choices[sample.correct], answer_with)
    directive = DIRECTIVES[answer_with] if sample.directive is None else sample.directive
    if (sample.answer, sample.directive) == (answer, directive):
        return sample
    return replace(sample, answer=answer, directive=directive)
