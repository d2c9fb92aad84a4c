"""Rows of your own tables as samples. A row says what it is by its fields:

- {image, question, answer[, choices, label, captions, split, id, directive]}: a question
- {image, label[, …]}: a labelled picture, which becomes a four-option question (with `choices`, of those)
- {image, conversations: [{from, value}, …]}: LLaVA's form
- {images, messages: [{role, content}, …]}: OpenAI's form
"""

import base64
import binascii
import difflib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.data.captions import class_text, declarative
from craft.data.choices import DIRECTIVES, QUESTION
from craft.data.conversations import conversation
from craft.data.folder import SPLIT_NAMES, is_text, words
from craft.data.images import ImageSource
from craft.data.packed import Packed
from craft.data.parquet import Row
from craft.data.problems import Problems
from craft.data.raw import Raw
from craft.data.sample import LETTERS, Sample, normalise
from craft.data.tables import EXAMPLE, LISTS, MARKS, SPLITLIKE, list_in, read_rows

REQUIRED = ("image", "question", "answer")
OPTIONAL = ("choices", "label", "captions", "split", "id", "directive", "kind", "text", "distractors")

_KNOWN = {*REQUIRED, *OPTIONAL}

Fetch = Callable[[str], Path]
"""Takes the URL of a picture and returns a file with it."""


def read_questions(
    paths: Sequence[Path],
    root: Path | None = None,
    domain: str | None = None,
    columns: Mapping[str, str] | None = None,
    fetch: Fetch | None = None,
    top: Path | None = None,
) -> Raw:
    """Read tables of questions; image paths are relative to the file (or to `root`).

    The set is a "classification" if every row is a labelled picture, or has choices and its label is its
    answer; otherwise "vqa". The contrastive loss gets question and answer as a statement, or, where a
    `domain` ("bird") is given and the label is the answer, the class text.

    Args:
        paths: the tables; a file called like a split ("test.csv") settles the split of its rows, and so does
            a folder below `top`.
        root: folder that image paths start from.
        domain: what the images are of, in words.
        columns: our field -> the table's column, where they differ.
        fetch: how to get a picture from a URL; None refuses URLs.
        top: the folder whose tables these are; None for a single file.

    Raises:
        DataError: bad JSON, a missing or wrong field, choices without the answer, a repeated id, missing
            images; the first few are named with file and line. Also tables without a single row.
    """
    samples: list[Sample] = []
    one = len(paths) == 1 and paths[0].stem.lower() not in SPLITLIKE
    name = paths[0].stem if one else paths[0].parent.resolve().name
    problems, rows, ids = Problems("rows"), 0, dict[str, str]()
    shared = os.path.commonpath([path.parent for path in paths])
    for path in paths:
        base = root if root is not None else path.parent
        place = path.relative_to(shared).as_posix()
        reader = Reader(base, domain, words(name), dict(columns or {}), fetch, str(path), place)
        for row in read_rows(path, problems, root or path.parent, top):
            try:
                for sample in reader.samples(row):
                    if sample.id in ids:
                        raise DataError(
                            f"{row.origin}: the id '{sample.id}' was already used in {ids[sample.id]}. "
                            "Give every row its own id, or leave ids out."
                        )
                    ids[sample.id] = row.origin
                    samples.append(sample)
                rows += 1
            except DataError as error:
                problems.add(error)
    problems.stop(rows + len(problems.found))
    where = str(paths[0]) if len(paths) == 1 else str(paths[0].parent)
    if not samples:
        raise DataError(f"{where} holds no rows. Write one JSON object a line, like {EXAMPLE}")
    _there(samples, paths[0].parent if root is None else root)
    bare = [s for s in samples if s.label is not None and not s.answer]
    if bare and len(bare) < len(samples):
        raise DataError(
            f"{bare[0].origin}: a labelled picture without an answer among rows that have one. "
            "Give all rows an answer, or none."
        )
    labelled = all(s.label is not None and (not s.answer or s.choices) for s in samples)
    task = "classification" if labelled and all(s.answer_text in (s.label, "") for s in samples) else "vqa"
    return Raw(name, task, domain or words(name), samples, source=where)


def _there(samples: Sequence[Sample], base: Path) -> None:
    checked: dict[str, bool] = {}
    for sample in samples:
        if isinstance(sample.image, str) and sample.image not in checked:
            checked[sample.image] = os.path.isfile(sample.image)
    missing = [s for s in samples if isinstance(s.image, str) and not checked[s.image]]
    if missing:
        shown = "; ".join(f"{s.image} ({s.origin})" for s in missing[:5])
        more = f"; and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{len(missing)} of the {len(samples)} rows name an image that does not exist: {shown}{more}. "
            f"Paths are relative to {base}; correct them, or put the files there."
        )


class Reader:
    """Makes samples of rows.

    Args:
        base: folder that image paths start from.
        domain, columns, fetch: as in `read_questions`.
        name: the domain of labelled pictures where none is given.
        path, place: the file, and its name among the files that are read: ids begin with it.
    """

    def __init__(
        self,
        base: Path,
        domain: str | None,
        name: str,
        columns: Mapping[str, str],
        fetch: Fetch | None,
        path: str,
        place: str,
    ) -> None:
        self.base = base
        self.domain = domain
        self.name = name
        self.columns = columns
        self.fetch = fetch
        self.path = path
        self.place = place

    def samples(self, row: Row) -> list[Sample]:
        """The samples of one row: several for a conversation of several turns.

        Raises:
            DataError: something in the row is missing or wrong.
        """
        told, theirs = row.values, set(self.columns.values())
        if missing := [ours for ours, name in self.columns.items() if name not in told]:
            raise DataError(
                f"{row.origin}: there is no column '{self.columns[missing[0]]}' (for '{missing[0]}'); it has "
                f"{', '.join(told)}."
            )
        values = {name: value for name, value in told.items() if name not in theirs}
        values |= {ours: told[name] for ours, name in self.columns.items()}
        if Path(self.path).suffix.lower() in MARKS:  # lists in columns of other names
            cells = {name: values[name] for name in LISTS if isinstance(values.get(name), str)}
            values |= {name: list_in(cell) for name, cell in cells.items()}
        if "file_name" in values:  # metadata.jsonl of an image folder
            values.setdefault("image", values["file_name"])
        if "conversations" in values or "messages" in values:
            return self._turns(row, values)
        return [self._flat(row, values)]

    def _turns(self, row: Row, values: dict[str, Any]) -> list[Sample]:
        picture, pairs = conversation(values, row.origin)
        image, split = read_picture(picture, self.base, row.origin, self.fetch), _split(values, row)
        id = self._id(values, row)
        return [
            Sample(
                id=id if len(pairs) == 1 else f"{id}#{number}",
                image=image,
                question=question,
                answer=answer,
                split=split,
                directive="",  # such data bring their own, inside the question
                origin=row.origin,
                text=declarative(question, answer),
            )
            for number, (question, answer) in enumerate(pairs, start=1)
        ]

    def _id(self, values: dict[str, Any], row: Row) -> str:
        """The row's own, or one from its place: "questions.jsonl:12", wherever the file lies."""
        if values.get("id") is not None:
            return _text(values, "id", row.origin)
        return self.place + row.origin.removeprefix(self.path)

    def _flat(self, row: Row, values: dict[str, Any]) -> Sample:
        origin = row.origin
        labelled = values.get("label") is not None and values.get("answer") is None
        if "label" in values and values["label"] is None and "answer" not in values:
            raise DataError(f"{origin}: the label is missing (in hub data sets: -1). Leave such rows out.")
        for name in ("image",) if labelled else REQUIRED:
            if name not in values:
                near = difflib.get_close_matches(name, [key for key in values if key not in OPTIONAL], 1, 0.7)
                hint = f" (did you mean it by '{near[0]}'?)" if near else ""
                others = [key for key in values if key not in _KNOWN]
                more = f"; this one has {', '.join(others)}. Say which is which: --column {name}=NAME"
                raise DataError(
                    f"{origin}: the field '{name}' is missing{hint}. A row needs {', '.join(REQUIRED)}, "
                    f"or image and label{more if others and not near else ''}."
                )
        for name in values.keys() - _KNOWN:
            if near := _near(name):
                raise DataError(f"{origin}: unknown field '{name}'; did you mean '{near}'?")
        label = _text(values, "label", origin) if values.get("label") is not None else None
        choices = _strings(values, "choices", origin)
        asked = not labelled or values.get("question")
        question = _text(values, "question", origin) if asked else QUESTION if choices else ""
        answer = _text(values, "answer", origin) if not labelled else str(label) if choices else ""
        correct = _correct(choices, answer, origin) if choices else None
        said = answer if correct is None else choices[correct]
        if label is not None and (normalise(label) == normalise(said) or (labelled and choices)):
            label = said
        if values.get("text"):
            text = _text(values, "text", origin)
        elif labelled:
            text = class_text(self.domain or self.name, str(label))
        else:
            about = self.domain if label == said else None
            text = class_text(about, said) if about else declarative(question, said)
        directive = None if choices or labelled else DIRECTIVES["open"]
        if isinstance(values.get("directive"), str):
            directive = values["directive"].strip()  # also "", which asks for no directive
        return Sample(
            id=self._id(values, row),
            image=read_picture(values["image"], self.base, origin, self.fetch),
            question=question,
            answer=said,
            choices=choices,
            label=label,
            captions=_strings(values, "captions", origin),
            split=_split(values, row),
            directive=directive,
            origin=origin,
            correct=correct,
            text=text,
            kind=_text(values, "kind", origin) if values.get("kind") else "",
            distractors=_strings(values, "distractors", origin),
        )


def read_picture(value: Any, base: Path, origin: str, fetch: Fetch | None = None) -> ImageSource:
    """The picture that a row names: by path, as bytes or a data URI, by URL, or in a larger file.

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
                f"{origin}: the image is a URL ({text[:80]}), and nothing is downloaded unasked. "
                "Run `craft data prepare --download`, and use what it writes."
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


@functools.cache
def _near(field: str) -> str | None:
    return next(iter(difflib.get_close_matches(field, OPTIONAL, 1, 0.85)), None)


def _text(row: Mapping[str, Any], name: str, origin: str) -> str:
    value = row[name]
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # NaN: nothing
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{origin}: '{name}' must be a text that is not empty, not {value!r}.")
    if not is_text(value):
        raise DataError(f"{origin}: '{name}' holds half a character ({value!r}). Correct it.")
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
    if answer in choices:
        return choices.index(answer)
    alike = [normalise(choice) for choice in choices]
    if normalise(answer) in alike:
        return alike.index(normalise(answer))
    if len(answer) == 1 and answer.upper() in LETTERS[: len(choices)]:
        return LETTERS.index(answer.upper())
    raise DataError(
        f"{origin}: the answer '{answer}' is not one of the choices {list(choices)}. "
        "Give an option's text, or its letter."
    )


def _split(values: Mapping[str, Any], row: Row) -> str:
    value = values.get("split")
    if value is None:
        return row.split
    name = SPLIT_NAMES.get(str(value).lower())
    if name is None:
        raise DataError(f"{row.origin}: unknown split {value!r}. Use 'train', 'validation' or 'test'.")
    return name
