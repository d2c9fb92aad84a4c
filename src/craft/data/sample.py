"""The types that data travels in: a `Sample`, the `Raw` set that a reader returns, and the `Data` set."""

import functools
import hashlib
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from craft.core.errors import DataError
from craft.data.captions import declarative
from craft.data.images import ImageSource, image_bytes_hash, image_key

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The letters that name the options, in order."""

Task = Literal["classification", "vqa"]


@dataclass(frozen=True)
class Sample:
    """One image with one question and its short answer.

    Attributes:
        id: unique within its data set; every random choice about this sample is seeded by it.
        image: a path, the bytes of an image file, a PIL image or an array (see `open_image`).
        question: the question alone, without options and directive.
        answer: what a correct reply says, word for word (an option's letter or text, or a free answer).
        choices: the options, in the order of their letters; empty for an open question.
        label: the class of the image, if it has one.
        captions: further texts about the image for the contrastive loss.
        split: "train", "validation" or "test"; "" in a `Raw` set if the source does not say.
        seen: False if the label was held out of training.
        directive: the closing line that asks for a short answer, separate so that it can be replaced. ""
            asks for none. None leaves it to `load_data`, which puts the usual one below options.
        origin: where the sample was declared ("questions.jsonl:12"), for messages.
        correct: the index of the correct choice; None for an open question.
        text: the ground-truth text of the contrastive loss; if empty, the class text (for a labelled image
            without a question of its own), or the question and answer rewritten.
        kind: the kind of question, if the data set distinguishes them ("open", "closed").
        distractors: wrong options that this sample must get, the best last (from an option file); if empty,
            `multiple_choice` chooses them.
        group: what images that belong together share (a leaf, a patient); a group is never divided between
            training and test. "" if the image stands alone.
    """

    id: str
    image: ImageSource = field(compare=False, repr=False)
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    label: str | None = None
    captions: tuple[str, ...] = ()
    split: str = "train"
    seen: bool = True
    directive: str | None = None
    origin: str = ""
    correct: int | None = None
    text: str = ""
    kind: str = ""
    distractors: tuple[str, ...] = ()
    group: str = ""

    def prompt(self, directive: str | None = None) -> str:
        """The full question: question line, lettered options, and a directive (by default the sample's)."""
        options = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False))
        closing = self.directive if directive is None else directive
        return "\n".join(part for part in (self.question, *options, closing) if part)

    @property
    def answer_text(self) -> str:
        """The answer in words: the text of the correct option, or the free answer."""
        return self.answer if self.correct is None else self.choices[self.correct]

    @property
    def concept(self) -> str:
        """What samples are grouped and counted by: the label, or the answer in words if there is none."""
        return self.label if self.label is not None else self.answer_text

    def texts(self) -> tuple[str, ...]:
        """The texts of the contrastive loss, ground truth first (T_i of §3.2)."""
        return (self.text or declarative(self.question, self.answer_text), *self.captions)


def labelled(id: str, image: ImageSource, label: str, split: str = "", origin: str = "") -> Sample:
    """A labelled image, whose question and text are written later (`multiple_choice`, `divide`)."""
    return Sample(id, image, question="", answer="", label=label, split=split, origin=origin or id)


def distinct(samples: Sequence[Sample]) -> list[Sample]:
    """One sample for each image: the first."""
    return list({image_key(sample.image): sample for sample in reversed(samples)}.values())[::-1]


@dataclass
class Raw:
    """Samples as a reader found them, before splits, hold-out and options are settled.

    A labelled sample without question and choices becomes a multiple-choice question later.

    Attributes:
        name, task, domain, licence, source, notes: as in `Data`.
        samples: all samples, in a stable order, with unique ids.
        train_limit: train on at most this many images, with all their questions; the subset is drawn once
            for all seeds.
        caveats: what every report on the data must say ("partial: 6 of 10 classes").
        classes: the labels of a set that is drawn on demand; empty for every other set.
        draw: draws the training samples again, without images and names of the given classes.
        white_level: the value that is white in images of more than 8 bits; None: by what they hold.
        levelled: whether `levelled` has applied it.
    """

    name: str
    task: Task
    domain: str
    samples: list[Sample] = field(default_factory=list)
    licence: str = ""
    source: str = ""
    notes: list[str] = field(default_factory=list)
    train_limit: int | None = None
    caveats: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    draw: Callable[[Collection[str]], list[Sample]] | None = None
    white_level: float | None = None
    levelled: bool = False


@dataclass
class Data:
    """A data set of three splits, ready for training and evaluation.

    Attributes:
        name: the embedded domain's name, or the folder's or file's.
        task: "classification" (four options, class hold-out) or "vqa".
        domain: what the images are of, in words ("fashion item").
        train, validation, test: the samples; training and validation hold seen classes only.
        classes: every label, seen and held out, sorted; empty if samples carry no labels.
        held_out: the labels that occur neither in training images nor in training options.
        licence, source: of embedded domains and benchmarks; `licence` is empty for your own files.
        seed: the seed of the hold-out and the options.
        notes: sentences about what was left out or chosen while reading.
        caveats: as in `Raw`.
        tested: the test samples without a limit; they must not train either.
        hashes: SHA-256 of image files that were read already, by `image_key`; the fingerprint reads only the
            others.
    """

    name: str
    task: Task
    domain: str
    train: list[Sample]
    validation: list[Sample]
    test: list[Sample]
    classes: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    tested: list[Sample] = field(default_factory=list, repr=False, compare=False)
    hashes: dict[Hashable, str] = field(default_factory=dict, repr=False, compare=False)

    def samples(self, split: str) -> list[Sample]:
        """The samples of "train", "validation" or "test".

        Raises:
            DataError: there is no such split, or it is empty.
        """
        if split not in ("train", "validation", "test"):
            raise DataError(f"{self.name} has no split '{split}'; there are train, validation and test.")
        samples: list[Sample] = getattr(self, split)
        if not samples:
            raise DataError(f"{self.name} has no {split} samples. Add some, or use another split.")
        return samples

    def all_samples(self) -> list[Sample]:
        """Training, validation and test samples in one list."""
        return [*self.train, *self.validation, *self.test]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every sample's split, id, prompt, answer, label, texts and image bytes.

        Computed on first use, which reads every image file that is not in `hashes` once.

        Raises:
            DataError: an image file cannot be read.
        """
        digest, hashes = hashlib.sha256(), dict(self.hashes)
        for sample in self.all_samples():
            key = image_key(sample.image)
            if key not in hashes:
                hashes[key] = image_bytes_hash(sample.image)
            words = (sample.prompt(), sample.answer, sample.label, sample.texts())
            row = (sample.split, sample.id, *words, hashes[key])
            digest.update(repr(row).encode("utf-8"))
        return digest.hexdigest()
