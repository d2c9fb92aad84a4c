"""Shared by the readers of benchmarks: finding files, opening them, making samples."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.data.choices import DIRECTIVES
from craft.data.images import ImageSource
from craft.data.readers.rows import Row
from craft.data.sample import Sample
from craft.data.spelling import normalise

Note = Callable[[str], None]
"""Takes a sentence about something that was left out or chosen while reading."""


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
    """A question with options of its own. Nothing, with a note, if two options read the same, because then no
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


def folders_in(parent: Path) -> list[Path]:
    """The folders directly in a folder, sorted, without hidden ones."""
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
