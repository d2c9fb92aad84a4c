"""Rows of tables as samples. The fields of a row say what it is:

- {image, question, answer[, choices, label, captions, split, id, directive]}: a question
- {image, label[, …]}: a labelled image, which becomes a four-option question (or one of its `choices`)
- {image, question, A, B, …, answer}: MMBench's form, the options in columns
- {image, conversations: [{from, value}, …]}: LLaVA's form
- {images, messages: [{role, content}, …]}: OpenAI's form
- {images, query, response} and {images, instruction, input, output}: ms-swift's and LLaMA-Factory's
"""

import difflib
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.data.captions import class_text, declarative
from craft.data.choices import DIRECTIVES, QUESTION, correct_option, lettered_options, list_in_text
from craft.data.images import ImageSource
from craft.data.readers.conversations import conversation, is_conversation, refuse_tag, untagged
from craft.data.readers.pictures import Fetch, one_picture, read_picture
from craft.data.sample import LETTERS, Sample
from craft.data.spelling import brief, difference, is_text, normalise

REQUIRED = ("image", "question", "answer")
"""The fields of a question."""

OPTIONAL = (
    *("choices", "label", "captions", "split", "id", "directive", "kind", "text", "distractors"),
    "group",
)
"""The fields that a row may have in addition."""

LISTS = ("choices", "captions", "distractors")
"""Fields that hold a list."""

IMAGE_COLUMNS = ("image", "images", "file_name")
"""Columns of a table that name images."""

_KNOWN = {*REQUIRED, *OPTIONAL}


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
        json.JSONDecodeError: not JSON, nested too deep, with a number that is too long, or with an object
            that has a key twice (all values but the last would be lost).
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error).partition(";")[0], text, 0) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object with {brief(pairs[0][1])} has the key '{twice}' twice")
    return value


def list_in(text: str, name: str, origin: str) -> list[Any]:
    """The list in a cell of a CSV file: JSON, a Python list, or texts separated by "|".

    Raises:
        DataError: the text is a list that cannot be read.
    """
    value = list_in_text(text, name, origin)
    return [part.strip() for part in text.split("|")] if value is None else value


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
        inside: the folder that image paths must not leave; None allows all.
    """

    path: str
    name: str
    base: Path
    default_domain: str
    domain: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    fetch: Fetch | None = None
    lists_in_cells: bool = False
    inside: Path | None = None

    def samples(self, row: Row) -> list[Sample]:
        """The samples of one row: several for a conversation of several turns.

        Raises:
            DataError: something in the row is missing or wrong.
        """
        values = self._fields(row)
        if is_conversation(values):
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
        values = {name: None if is_nan(value) else value for name, value in values.items()}
        if values.get("choices") is None and (options := _other_choices(values, row.origin)) is not None:
            values["choices"] = options
            if values.get("options") is None and values.get("hint"):  # as MMBench asks
                values["question"] = f"{values['hint']}\n{values['question']}"
        for name in LISTS:
            if isinstance(value := values.get(name), str):
                items = (list_in if self.lists_in_cells else list_in_text)(value, name, row.origin)
                values[name] = value if items is None else items
        return values

    def _turns(self, row: Row, values: dict[str, Any]) -> list[Sample]:
        picture, pairs = conversation(values, row.origin)
        image = self._picture(picture, row)
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

    def _picture(self, value: Any, row: Row) -> ImageSource:
        return read_picture(value, self.base, row.origin, self.fetch, self.inside)

    def _id(self, values: dict[str, Any], row: Row) -> str:
        """The row's own id, or one from its position: "questions.jsonl:12", wherever the file is."""
        if values.get("id") is not None:
            return text_of(values, "id", row.origin)
        return self.name + row.origin.removeprefix(self.path)

    def _flat(self, row: Row, values: dict[str, Any]) -> Sample:
        """A question, or a labelled image."""
        origin = row.origin
        picture = one_picture(values, origin)
        if picture is None and "images" in values:
            raise DataError(f"{origin}: 0 images. A row must be about exactly one; leave other rows out.")
        labelled = values.get("label") is not None and values.get("answer") is None
        _check_fields(values | ({} if picture is None else {"image": picture}), labelled, origin)
        label = text_of(values, "label", origin) if values.get("label") is not None else None
        choices = _strings(values, "choices", origin)
        question = QUESTION if choices else ""
        if not labelled or values.get("question"):
            question = untagged(text_of(values, "question", origin), 1, origin)
        answer = text_of(values, "answer", origin) if not labelled else str(label) if choices else ""
        correct = correct_option(choices, answer, origin) if choices else None
        if correct is not None:
            answer = choices[correct]
        if label is not None and (normalise(label) == normalise(answer) or (labelled and choices)):
            label = answer
        return Sample(
            id=self._id(values, row),
            image=self._picture(picture, row),
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
            kind=text_of(values, "kind", origin) if values.get("kind") else "",
            distractors=_strings(values, "distractors", origin),
            group=_group(values, origin),
        )

    def _statement(
        self, values: Mapping[str, Any], origin: str, question: str, answer: str, label: str | None
    ) -> str:
        """The ground-truth text: the row's own, the class text, or question and answer as a statement."""
        if values.get("text"):
            return text_of(values, "text", origin)
        if label is not None and values.get("answer") is None:
            return class_text(self.domain or self.default_domain, label)
        if self.domain and label == answer:
            return class_text(self.domain, answer)
        return declarative(question, answer)


def _check_fields(values: Mapping[str, Any], labelled: bool, origin: str) -> None:
    """Refuse a row without a required field, or with a field that is probably misspelled."""
    if "label" in values and values["label"] is None and "answer" not in values:
        raise DataError(f"{origin}: the label is missing (in hub data sets: -1). Leave such rows out.")
    for name in ("image",) if labelled else REQUIRED:
        if name not in values:
            near = difflib.get_close_matches(name, [key for key in values if key not in OPTIONAL], 1, 0.7)
            hint = f" (is '{near[0]}' meant to be it? --column {name}={near[0]})" if near else ""
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


def _other_choices(values: Mapping[str, Any], origin: str) -> Any:
    """The options of a question under other names than `choices`: `options`, or MMBench's columns A, B, …"""
    if values.get("question") is None:
        return None
    return lettered_options(values, origin) if values.get("options") is None else values["options"]


def is_nan(value: Any) -> bool:
    """Whether a value is NaN, as pandas writes a missing one."""
    return isinstance(value, float) and math.isnan(value)


def text_of(row: Mapping[str, Any], name: str, origin: str) -> str:
    """A field of a row as text. A number is written as text, a whole one without a fraction (pandas makes
    1.0 of 1 in a column with gaps).

    Raises:
        DataError: it is empty or no text, or contains half a character, or the tag for an image (except in a
            question).
    """
    value = row[name]
    if value is None:
        raise DataError(
            f"{origin}: '{name}' is empty (null, NaN or an empty cell). Fill it in, or leave the row out."
        )
    if isinstance(value, bool):
        raise DataError(f"{origin}: '{name}' is the boolean {value}. Write it as text, as in \"yes\".")
    if isinstance(value, int | float) and math.isfinite(value):
        value = str(int(value)) if value == int(value) else str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{origin}: '{name}' must be a non-empty text, not {brief(value)}.")
    if not is_text(value):
        raise DataError(f"{origin}: '{name}' contains half a character ({brief(value)}). Correct it.")
    if name not in ("question", "id"):
        refuse_tag(value, name, origin)
    return value.strip()


def _strings(row: Mapping[str, Any], name: str, origin: str) -> tuple[str, ...]:
    value = row.get(name)
    if value is None:
        return ()
    if isinstance(value, Mapping) and name == "choices":
        value = lettered_options({key.upper(): option for key, option in value.items()}, origin) or value
    if not isinstance(value, list):
        raise DataError(f"{origin}: '{name}' must be a list of texts, not {brief(value)}.")
    strings = tuple(text_of({name: item}, name, origin) for item in value)
    if name == "choices":
        if not 2 <= len(strings) <= len(LETTERS):
            one = f' ({brief(strings[0])}). Separate them with "|", or write a JSON list' * (
                len(strings) == 1
            )
            raise DataError(
                f"{origin}: 'choices' must hold 2 to {len(LETTERS)} options, not {len(strings)}{one}."
            )
        _check_distinct(strings, origin)
    return strings


def _check_distinct(choices: tuple[str, ...], origin: str) -> None:
    spellings: dict[str, str] = {}
    for choice in choices:
        if normalise(choice) in spellings:
            other = spellings[normalise(choice)]
            how = "" if other == choice else f" They differ {difference(other, choice)}."
            raise DataError(
                f"{origin}: 'choices' names an option twice: {list(choices)}.{how} Make them distinct."
            )
        spellings[normalise(choice)] = choice


def _group(values: Mapping[str, Any], origin: str) -> str:
    return "" if values.get("group") is None else text_of(values, "group", origin)
