"""A benchmark of the paper (§4.1, §11), and what the readers of copies share."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from craft.core.errors import DataError
from craft.core.files import user_path
from craft.data.choices import DIRECTIVES
from craft.data.images import ImageSource
from craft.data.readers.packed import parquet_files, read_parquet
from craft.data.readers.rows import Row
from craft.data.readers.scan import folders_in
from craft.data.sample import Raw, Sample, Task
from craft.data.spelling import normalise

Note = Callable[[str], None]
"""Takes a sentence about something that was left out or chosen while reading."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what it is, where it comes from, and how its copies are read.

    Attributes:
        name: what `--data` takes.
        title: its authors' name for it.
        task: "classification" (becomes four options, with class hold-out) or "vqa".
        domain: what the images are of, in words, for the texts of the contrastive loss.
        licence: as its authors state it.
        source: who made it, and where that is published.
        get: how to get it, in a sentence.
        layout: the files of the original, relative to `--root`.
        sizes: the number of questions (or images, see `counted`) in each split; "all" if there is no official
            split.
        original: reads the original layout below a folder; yields nothing if the folder has another layout.
        copy: makes samples of one row of a hub copy.
        classes: the number of classes; 0 if there are none.
        hub: ids of hub copies that `copy` can read.
        refused: ids of hub copies that cannot be used, and why.
        train_limit: training uses at most this many images (OCR-VQA).
        counted: what `sizes` counts.
    """

    name: str
    title: str
    task: Task
    domain: str
    licence: str
    source: str
    get: str
    layout: str
    sizes: Mapping[str, int]
    original: Callable[[Path, Note], Iterable[Sample]] = field(repr=False)
    copy: Callable[[Row, Note], Iterable[Sample]] = field(repr=False)
    classes: int = 0
    hub: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    train_limit: int | None = None
    counted: Literal["questions", "images"] = "questions"

    def load(self, root: str | Path | None) -> Raw:
        """Every sample of the copy in `root`: the original layout, or a hub copy's parquet files.

        Raises:
            DataError: no root, or no such folder; nothing of the benchmark in it; a file of it is missing or
                damaged.
        """
        if root is None:
            raise DataError(f"{self.title} needs a folder: --root DIR. {self.how_to_get()}")
        folder = user_path(root)
        if not folder.is_dir():
            raise DataError(f"the folder {folder} does not exist. {self.how_to_get()}")
        notes: dict[str, None] = {}  # in order, each once

        def note(text: str) -> None:
            notes[text] = None

        samples = list(self.original(folder, note))
        if not samples and (configurations := parquet_files(folder)):
            if len(configurations) > 1:
                raise DataError(
                    f"{root} has several configurations of {self.title}: "
                    f"{', '.join(sorted(configurations))}. Use one of them as --root."
                )
            rows = read_parquet(next(iter(configurations.values())), folder, folder)
            samples = [sample for row in rows for sample in self.copy(row, note)]
        if not samples:
            raise DataError(f"{self.title} is not in {root}. Expected {self.layout}. {self.how_to_get()}")
        return Raw(
            self.name,
            self.task,
            self.domain,
            samples,
            self.licence,
            self.source,
            notes=list(notes),
            train_limit=self.train_limit,
        )

    def how_to_get(self) -> str:
        """Where the files come from, in one or two sentences."""
        if not self.hub:
            return f"To get it: {self.get}"
        roots = " or ".join(f"--root hub:{id}" for id in self.hub)
        return f"To get it: {self.get} Or use a hub copy: `craft data prepare {self.name}` with {roots}."

    def refuse_copy(self, id: str) -> None:
        """Check the id of a hub copy.

        Raises:
            DataError: it cannot be used.
        """
        for refused, reason in self.refused.items():
            if id.startswith(refused):
                raise DataError(f"the hub copy {refused} cannot be used: {reason}. {self.how_to_get()}")


def row_id(row: Row) -> str:
    """An id from the position of a row: "test-00000.parquet, row 7"."""
    return row.origin.rpartition("/")[2]


def column(row: Row, *names: str) -> Any:
    """The value of the first of these columns that a row has.

    Raises:
        DataError: it has none of them.
    """
    for name in names:
        if name in row.values:
            return row.values[name]
    raise DataError(
        f"{row.origin}: there is no column '{names[0]}', only {', '.join(row.values)}. Use another copy."
    )


def find_below(root: Path, *names: str, depth: int = 3) -> Path | None:
    """The first file with one of these names in `root`, or up to `depth` folders deeper."""
    layer = [root]
    for _ in range(depth + 1):
        for name in names:
            for folder in layer:
                if (folder / name).exists():
                    return folder / name
        layer = [child for folder in layer for child in folders_in(folder)]
        if len(layer) > 2000:  # thousands of folders hold classes or images, not the file
            return None
    return None


def need_below(root: Path, title: str, name: str, partner: Path) -> Path:
    """`find_below`, for a file that must exist because another one does.

    Raises:
        DataError: it does not exist.
    """
    path = find_below(root, name)
    if path is None:
        raise DataError(f"{title}: {partner} exists, but {name} is missing. Put it next to it.")
    return path


def read_annotations(path: Path) -> Any:
    """A JSON file of annotations.

    Raises:
        DataError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON ({error}). Copy the file again.") from error


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file.

    Raises:
        DataError: it cannot be read.
    """
    from scipy.io import loadmat

    try:
        return loadmat(path, squeeze_me=True, chars_as_strings=True)
    except Exception as error:  # the reader may raise anything on a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is not a MATLAB file ({reason}). Copy the file again.") from error


def choice_sample(sample: Sample, choices: Sequence[Any], answer: Any, note: Note) -> Iterator[Sample]:
    """A question that has its options. Nothing, with a note, if two options read the same, because then no
    answer is correct by its words alone.

    Args:
        sample: image and question, without an answer.
        choices: the options.
        answer: the index of the correct option, also as text, or the option itself.
        note: takes notes.

    Raises:
        DataError: the answer is none of the options.
    """
    options = tuple(" ".join(str(choice).split()) for choice in choices)
    if len(set(map(normalise, options))) < len(options) or len(options) < 2:
        note("left out: questions whose options are not distinct")
        return
    if isinstance(answer, str) and answer in options:
        answer = options.index(answer)
    if isinstance(answer, str) and answer.strip().isdigit():
        answer = int(answer)
    if not isinstance(answer, int) or not 0 <= answer < len(options):
        raise DataError(f"{sample.origin}: the answer {answer!r} is none of the {len(options)} options.")
    question = sample.question.strip()
    yield replace(sample, question=question, answer=options[answer], choices=options, correct=answer)


def open_sample(
    id: str, image: ImageSource, question: object, answer: object, split: str, origin: str, kind: str = ""
) -> Iterator[Sample]:
    """A question with a free, short answer.

    Raises:
        DataError: question or answer is empty.
    """
    question, answer = " ".join(str(question).split()), " ".join(str(answer).split())
    if not question or not answer:
        raise DataError(f"{origin}: the {'answer' if question else 'question'} is empty.")
    directive = DIRECTIVES["open"]
    yield Sample(id, image, question, answer, split=split, origin=origin, kind=kind, directive=directive)
