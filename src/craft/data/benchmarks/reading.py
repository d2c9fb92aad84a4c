"""What the readers of benchmarks share: finding files, opening them, making samples."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.data.choices import DIRECTIVES
from craft.data.parquet import Row
from craft.data.sample import Sample, normalise

Note = Callable[[str], None]
"""Takes a sentence about something that was left out or chosen while reading."""


def as_words(name: str) -> str:
    """Underscores and runs of spaces as one space."""
    return " ".join(name.replace("_", " ").split())


def row_id(row: Row) -> str:
    """An id from the place of a row: "test-00000.parquet, row 7"."""
    return row.origin.rpartition("/")[2]


def column(row: Row, *names: str) -> Any:
    """The first of these fields that a row has.

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
        if len(layer) > 2000:  # class folders, images by the thousand: not there
            return None
    return None


def need_below(root: Path, title: str, name: str, beside: Path) -> Path:
    """`find_below`, for a file that must be there since another one is.

    Raises:
        DataError: it is not.
    """
    found = find_below(root, name)
    if found is None:
        raise DataError(f"{title}: {beside} is there, but {name} is missing. Put it beside it.")
    return found


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


def choice_sample(
    id: str,
    image: Any,
    question: str,
    choices: Sequence[Any],
    answer: Any,
    split: str,
    origin: str,
    note: Note,
    captions: tuple[str, ...] = (),
) -> Iterator[Sample]:
    """A question with its own options, `answer` being a number from 0, a letter's place or an option's text.

    Nothing, with a note, where two options read the same: then no answer is right by its words alone.

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
        raise DataError(f"{origin}: the answer {answer!r} is none of the {len(options)} options.")
    yield Sample(
        id=id,
        image=image,
        question=str(question).strip(),
        answer=options[answer],
        choices=options,
        captions=captions,
        split=split,
        origin=origin,
        correct=answer,
    )


def open_sample(
    id: str, image: Any, question: Any, answer: Any, split: str, origin: str, kind: str = ""
) -> Iterator[Sample]:
    """A question with a free, short answer.

    Raises:
        DataError: question or answer is empty.
    """
    asked, said = " ".join(str(question).split()), " ".join(str(answer).split())
    if not asked or not said:
        raise DataError(f"{origin}: the {'question' if not asked else 'answer'} is empty.")
    directive = DIRECTIVES["open"]
    yield Sample(id, image, asked, said, split=split, origin=origin, kind=kind, directive=directive)


def folders_in(parent: Path) -> list[Path]:
    """The folders directly in a folder, sorted, but for hidden ones."""
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
