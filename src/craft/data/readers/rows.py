"""Rows of tables as samples. The fields of a row say what it is:

- {image, question, answer[, choices, label, captions, split, id, directive]}: a question
- {image, label[, …]}: a labelled image, which becomes a four-option question (or one of its `choices`)
- {image, conversations: [{from, value}, …]}: LLaVA's form
- {images, messages: [{role, content}, …]}: OpenAI's form
"""

import base64
import binascii
import difflib
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.core.text import one_line
from craft.data.captions import class_text, declarative
from craft.data.choices import DIRECTIVES, QUESTION
from craft.data.images import ImageSource, Packed
from craft.data.readers.conversations import conversation
from craft.data.sample import LETTERS, Sample
from craft.data.spelling import is_text, normalise

REQUIRED = ("image", "question", "answer")
"""The fields of a question."""

OPTIONAL = (
    *("choices", "label", "captions", "split", "id", "directive", "kind", "text", "distractors"),
    "group",
)
"""The fields that a row may have in addition."""

LISTS = ("choices", "captions", "distractors")
"""Fields that hold a list."""

_KNOWN = {*REQUIRED, *OPTIONAL}

Fetch = Callable[[str], Path]
"""Takes the URL of an image and returns a file with it."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        origin: file and line ("a.jsonl:3"), for messages.
        values: its fields.
        split: the split that the row or its file says; "" if neither does.
    """

    origin: str
    values: dict[str, Any]
    split: str = ""


def parse_json(text: str) -> Any:
    """`json.loads`, with one kind of error for everything that cannot be read.

    Raises:
        json.JSONDecodeError: not JSON, nested too deep, or with a number that is too long.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error).partition(";")[0], text, 0) from error


def list_in(cell: str) -> list[Any]:
    """The list in a cell of a CSV file: JSON, or texts separated by "|"."""
    if cell.lstrip().startswith("["):
        try:
            value = parse_json(cell)
        except json.JSONDecodeError:
            pass
        else:
            return value if isinstance(value, list) else [value]
    return [part.strip() for part in cell.split("|")]


@dataclass(frozen=True)
class RowReader:
    """Makes samples of the rows of one file.

    Attributes:
        path: the file, as the origins of its rows begin.
        name: its path among the files that are read; ids begin with it.
        base: the folder that image paths start from.
        default_domain: the domain of labelled images if `domain` is None.
        domain: what the images are of, in words.
        columns: CRAFT's field -> the table's column, if they differ.
        fetch: fetches an image from a URL; None refuses URLs.
        lists_in_cells: lists stand in cells as text (CSV and TSV).
    """

    path: str
    name: str
    base: Path
    default_domain: str
    domain: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    fetch: Fetch | None = None
    lists_in_cells: bool = False

    def samples(self, row: Row) -> list[Sample]:
        """The samples of one row: several for a conversation of several turns.

        Raises:
            DataError: something in the row is missing or wrong.
        """
        values = self._fields(row)
        if "conversations" in values or "messages" in values:
            return self._turns(row, values)
        return [self._flat(row, values)]

    def _fields(self, row: Row) -> dict[str, Any]:
        """The values of a row under CRAFT's names."""
        if missing := [field for field, column in self.columns.items() if column not in row.values]:
            raise DataError(
                f"{row.origin}: there is no column '{self.columns[missing[0]]}' (for '{missing[0]}'); it has "
                f"{', '.join(row.values)}."
            )
        mapped = set(self.columns.values())
        values = {name: value for name, value in row.values.items() if name not in mapped}
        values |= {field: row.values[column] for field, column in self.columns.items()}
        if self.lists_in_cells:  # lists in columns of other names
            cells = {name: values[name] for name in LISTS if isinstance(values.get(name), str)}
            values |= {name: list_in(cell) for name, cell in cells.items()}
        if "file_name" in values:  # metadata.jsonl of an image folder
            values.setdefault("image", values["file_name"])
        return values

    def _turns(self, row: Row, values: dict[str, Any]) -> list[Sample]:
        picture, pairs = conversation(values, row.origin)
        image = read_picture(picture, self.base, row.origin, self.fetch)
        id = self._id(values, row)
        return [
            Sample(
                id=id if len(pairs) == 1 else f"{id}#{number}",
                image=image,
                question=question,
                answer=answer,
                split=row.split,
                directive="",  # the questions of conversations contain their own directive
                origin=row.origin,
                text=declarative(question, answer),
                group=_group(values, row.origin),
            )
            for number, (question, answer) in enumerate(pairs, start=1)
        ]

    def _id(self, values: dict[str, Any], row: Row) -> str:
        """The row's own id, or one from its position: "questions.jsonl:12", wherever the file is."""
        if values.get("id") is not None:
            return _text(values, "id", row.origin)
        return self.name + row.origin.removeprefix(self.path)

    def _flat(self, row: Row, values: dict[str, Any]) -> Sample:
        """A question, or a labelled image."""
        origin = row.origin
        labelled = values.get("label") is not None and values.get("answer") is None
        _check_fields(values, labelled, origin)
        label = _text(values, "label", origin) if values.get("label") is not None else None
        choices = _strings(values, "choices", origin)
        question = QUESTION if choices else ""
        if not labelled or values.get("question"):
            question = _text(values, "question", origin)
        answer = _text(values, "answer", origin) if not labelled else str(label) if choices else ""
        correct = _correct(choices, answer, origin) if choices else None
        if correct is not None:
            answer = choices[correct]
        if label is not None and (normalise(label) == normalise(answer) or (labelled and choices)):
            label = answer
        return Sample(
            id=self._id(values, row),
            image=read_picture(values["image"], self.base, origin, self.fetch),
            question=question,
            answer=answer,
            choices=choices,
            label=label,
            captions=_strings(values, "captions", origin),
            split=row.split,
            directive=_directive(values, has_options=bool(choices) or labelled),
            origin=origin,
            correct=correct,
            text=self._statement(values, origin, question, answer, label),
            kind=_text(values, "kind", origin) if values.get("kind") else "",
            distractors=_strings(values, "distractors", origin),
            group=_group(values, origin),
        )

    def _statement(
        self, values: Mapping[str, Any], origin: str, question: str, answer: str, label: str | None
    ) -> str:
        """The ground-truth text: the row's own, the class text, or question and answer as a statement."""
        if values.get("text"):
            return _text(values, "text", origin)
        if label is not None and values.get("answer") is None:
            return class_text(self.domain or self.default_domain, label)
        if self.domain and label == answer:
            return class_text(self.domain, answer)
        return declarative(question, answer)


def read_picture(value: Any, base: Path, origin: str, fetch: Fetch | None = None) -> ImageSource:
    """The image that a row names: a path, bytes, a data URI, a URL, or a part of a larger file.

    Raises:
        DataError: it is none of these, or a URL that is not, or cannot be, fetched.
    """
    if isinstance(value, Packed):
        return value
    if isinstance(value, Mapping) and ("url" in value or "path" in value or "bytes" in value):
        value = value.get("bytes") or value.get("url") or value.get("path")
    if isinstance(value, bytes):
        return value
    text = _text({"image": value}, "image", origin)
    if text.startswith("data:"):
        return _from_data_uri(text, origin)
    if text.startswith(("http://", "https://")):
        if fetch is None:
            raise DataError(
                f"{origin}: the image is a URL ({one_line(text, 80)}), and CRAFT downloads nothing unless "
                "asked. Run `craft data prepare --download`, and use the folder that it writes."
            )
        try:
            return str(fetch(text))
        except DataError as error:
            raise DataError(f"{origin}: {error}") from error
    if "\\" in text and not (base / text).is_file():  # as Windows writes paths
        text = text.replace("\\", "/")
    return str(base / text)


def _from_data_uri(text: str, origin: str) -> bytes:
    head, comma, body = text.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("not base64")
        return base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error) as error:
        raise DataError(f"{origin}: the image is a data URI that cannot be read ({error}).") from error


def _check_fields(values: Mapping[str, Any], labelled: bool, origin: str) -> None:
    """Refuse a row without a required field, or with a field that is probably misspelled."""
    if "label" in values and values["label"] is None and "answer" not in values:
        raise DataError(f"{origin}: the label is missing (in hub data sets: -1). Leave such rows out.")
    for name in ("image",) if labelled else REQUIRED:
        if name not in values:
            near = difflib.get_close_matches(name, [key for key in values if key not in OPTIONAL], 1, 0.7)
            hint = f" (is '{near[0]}' meant to be it?)" if near else ""
            others = [key for key in values if key not in _KNOWN]
            columns = f"; this one has {', '.join(others)}. Map the column: --column {name}=NAME"
            raise DataError(
                f"{origin}: the field '{name}' is missing{hint}. A row needs {', '.join(REQUIRED)}, "
                f"or image and label{columns if others and not near else ''}."
            )
    for name in values.keys() - _KNOWN:
        if near := _near(name):
            raise DataError(f"{origin}: unknown field '{name}'; did you mean '{near}'?")


@functools.cache
def _near(field: str) -> str | None:
    return next(iter(difflib.get_close_matches(field, OPTIONAL, 1, 0.85)), None)


def _directive(values: Mapping[str, Any], has_options: bool) -> str | None:
    if isinstance(values.get("directive"), str):
        return values["directive"].strip()  # also "", which asks for no directive
    return None if has_options else DIRECTIVES["open"]


def _text(row: Mapping[str, Any], name: str, origin: str) -> str:
    value = row[name]
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # not NaN
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{origin}: '{name}' must be a non-empty text, not {value!r}.")
    if not is_text(value):
        raise DataError(f"{origin}: '{name}' contains half a character ({value!r}). Correct it.")
    return value.strip()


def _strings(row: Mapping[str, Any], name: str, origin: str) -> tuple[str, ...]:
    value = row.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{origin}: '{name}' must be a list of texts, not {value!r}.")
    strings = tuple(_text({name: item}, name, origin) for item in value)
    if name == "choices":
        if not 2 <= len(strings) <= len(LETTERS):
            raise DataError(f"{origin}: 'choices' must hold 2 to {len(LETTERS)} options, not {len(strings)}.")
        if len(set(map(normalise, strings))) < len(strings):
            raise DataError(
                f"{origin}: 'choices' names an option twice: {list(strings)}. Make them distinct."
            )
    return strings


def _correct(choices: tuple[str, ...], answer: str, origin: str) -> int:
    """The index of the choice that the answer names by its text or its letter."""
    if answer in choices:
        return choices.index(answer)
    alike = [normalise(choice) for choice in choices]
    if normalise(answer) in alike:
        return alike.index(normalise(answer))
    if len(answer) == 1 and answer.upper() in LETTERS[: len(choices)]:
        return LETTERS.index(answer.upper())
    raise DataError(
        f"{origin}: the answer '{answer}' is not one of the choices {list(choices)}. "
        "Use the text of an option, or its letter."
    )


def _group(values: Mapping[str, Any], origin: str) -> str:
    return "" if values.get("group") is None else _text(values, "group", origin)
