"""Rows of text files: JSONL, JSON, CSV and TSV. Every row is read or named, and none is lost."""

import codecs
import csv
import io
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.core.progress import track
from craft.data.images import PICTURES
from craft.data.problems import Problems
from craft.data.readers.rows import IMAGE_COLUMNS, LISTS, Row, list_in, parse_json
from craft.data.spelling import brief

EXAMPLE = '{"image": "a.jpg", "question": "What is this?", "answer": "an oak"}'
"""A row, for messages."""

MANY = 20_000
"""Files of this many lines or more show how far the reading is."""

SEPARATORS = {".csv": ",", ".tsv": "\t"}
"""The separator of the cells of a file, by its ending (lower case)."""

_OTHER_SEPARATORS = (";", "\t", ",", "|")
"""Separators that a file may have in spite of its ending: Excel writes ";" if the comma is decimal."""

_FOREIGN = {
    b"\x1f\x8b": "It is compressed (gzip). Unpack it first: `gunzip {}`.",
    b"BZh": "It is compressed (bzip2). Unpack it first: `bunzip2 {}`.",
    b"\xfd7zXZ": "It is compressed (xz). Unpack it first: `unxz {}`.",
    b"(\xb5/\xfd": "It is compressed (Zstandard). Unpack it first: `unzstd {}`.",
    b"PK\x03\x04": "It is a zip or an Excel workbook. Unpack it, or save the sheet as 'CSV UTF-8'.",
    b"\xd0\xcf\x11\xe0": "It is an Excel workbook. Save the sheet as 'CSV UTF-8'.",
    b"PAR1": "It is a parquet file. Let its name end in .parquet.",
    b"SQLite format 3": "It is an SQLite database. Export the table as CSV.",
    b"version https://git-lfs": "It is a pointer of Git LFS. Run `git lfs pull` in its folder.",
}
"""What a file is that begins with these bytes, and what a user can do."""

_UNQUOTED = (
    " If quotes are part of the texts throughout this file, write it anew: "
    '`python -c "import csv, json, sys; [print(json.dumps(row)) for row in csv.DictReader(sys.stdin, '
    "delimiter='\\t', quoting=csv.QUOTE_NONE)]\" < {file} > {stem}.jsonl`."
)
"""What to do about a TSV in which a quote is a character like any other."""

_SHAPES = {
    "coco": "a COCO file: pictures ('images') and what they show ('annotations') are lists of their own. "
    "Write one row for each picture, with its 'file_name' as 'image' and its category or caption",
    "columns": "a table by columns, not by rows. pandas writes it by rows with "
    "`python -c \"import pandas; pandas.read_json('{path}').to_json('{stem}-rows.jsonl', orient='records', "
    'lines=True)"`',
    "list": "no row: its rows are in '{keys}'. Take them out with `jq -c '.\"{key}\"[]' {file} > "
    "{stem}-rows.jsonl`",
    "keys": "no row: it has a row under each of its keys. Take them out with `jq -c '.[]' {file} > "
    "{stem}-rows.jsonl`",
}
"""What an object is that is a whole file and no row, and what a user can do."""


def foreign(path: Path) -> str:
    """What a file is instead of a text, and what to do; "" if nothing is known of it."""
    try:
        with open(path, "rb") as file:
            start = file.read(32)
    except OSError:
        return ""
    if path.suffix.lower() == ".parquet" and start.startswith(b"PAR1"):
        return ""
    texts = (text for magic, text in _FOREIGN.items() if start.startswith(magic))
    return next(texts, "").format(shlex.quote(str(path)))


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 if it begins with its mark, as Excel writes "Unicode text".
    Line ends become "\\n".

    Raises:
        DataError: the file cannot be read, is no text, or has another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    if other := foreign(path):
        raise DataError(f"{path} cannot be read as UTF-8 text. {other}")
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        fix = "Save it as UTF-8 (in Excel: 'CSV UTF-8')"
        if error.end >= len(content) and error.reason in ("unexpected end of data", "truncated data"):
            fix = "The file ends inside a character: it was cut short. Copy it again"
        raise DataError(
            f"{path}:{_line(content, error.start)}: it cannot be read as "
            f"{'UTF-8' if encoding == 'utf-8-sig' else 'UTF-16'} text ({error}). {fix}."
        ) from error
    if "\0" in text:
        raise DataError(
            f"{path}:{text.count(chr(10), 0, text.index(chr(0))) + 1}: a NUL character, which no text has. "
            "Copy the file again, or save it as UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _line(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1


def json_rows(path: Path, problems: Problems, split: str = "") -> Iterator[Row]:
    """The objects of a JSONL file, or of a JSON file with one list of objects, like LLaVA's.

    Args:
        path: the file.
        problems: collects lines that are not objects.
        split: of the rows.

    Raises:
        DataError: the file cannot be read, or is one object that is not a row (COCO, a table by columns).
    """
    text = read_text(path)
    try:
        whole = parse_json(text)
    except json.JSONDecodeError as error:
        ends = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        cut = ends and "\n" in text.strip()
        if cut or (path.suffix.lower() == ".json" and text.lstrip()[:1] == "["):
            problem = f"not valid JSON ({error.msg}, column {error.colno}).{_hint(text, error)}"
            raise DataError(f"{path}:{error.lineno}: {problem}") from error
        yield from _lines(path, text, problems, split, EXAMPLE)
        return
    if isinstance(whole, list):
        for number, value in enumerate(whole, start=1):
            if not isinstance(value, dict):
                raise DataError(f"{path}, entry {number}: a {type(value).__name__}, not an object.")
            yield Row(f"{path}, entry {number}", value, split)
    elif isinstance(whole, dict):
        _refuse_whole(path, whole)
        yield Row(f"{path}:{text[: text.index('{')].count(chr(10)) + 1}", whole, split)
    else:
        yield from _lines(path, text, problems, split, EXAMPLE)


def json_lines(path: Path, problems: Problems, split: str = "", example: str = EXAMPLE) -> Iterator[Row]:
    """The objects of a JSONL file. Lines that are not objects are recorded in `problems`.

    Args:
        path: the file.
        problems: collects the mistakes.
        split: of the rows.
        example: a row, for messages.

    Raises:
        DataError: the file cannot be read, or its objects span several lines.
    """
    yield from _lines(path, read_text(path), problems, split, example)


def _lines(path: Path, text: str, problems: Problems, split: str, example: str) -> Iterator[Row]:
    lines, end = text.split("\n"), text.rstrip().count("\n") + 1
    shown = track(lines, f"reading {path.name}") if len(lines) >= MANY else lines
    first = True
    for number, line in enumerate(shown, start=1):
        if not line.strip():
            continue
        origin = f"{path}:{number}"
        try:
            value = parse_json(line)
        except json.JSONDecodeError as error:
            if first and number < end and _opens(line, error):
                raise DataError(
                    f"{origin}: a row must be on one line, and this one goes on in the next. Write the file "
                    f"anew: `jq -c . {shlex.quote(str(path))} > {shlex.quote(path.stem)}-rows.jsonl` (`.[]` "
                    "instead of `.` if it is one list)."
                ) from error
            problem = f"not valid JSON ({error.msg}, column {error.colno})"
            hint = _hint(line, error, number == end)
        else:
            first = False
            if isinstance(value, dict):
                yield Row(origin, value, split)
                continue
            problem, hint = f"a {type(value).__name__}, not an object", ""
        problems.add(DataError(f"{origin}: {problem}.{hint} Every line must be one object, like {example}"))


def _opens(line: str, error: json.JSONDecodeError) -> bool:
    """Whether JSON is cut at the end of this line only, so that it may go on in the next."""
    return line.lstrip()[:1] in "[{" and error.pos >= len(line.rstrip()) and error.msg != "Extra data"


def _hint(text: str, error: json.JSONDecodeError, last: bool = True) -> str:
    """What a user can do about JSON that cannot be read; "" if nothing is known.

    Args:
        text: the line, or the whole file.
        error: the mistake.
        last: the text is the end of its file.
    """
    end = len(text.rstrip())
    if last and (error.pos >= end or error.msg.startswith("Unterminated string")):
        return " The file ends inside this row: it was cut short. Copy it again, or remove the row."
    if text[: error.pos].rstrip().endswith(","):
        return " Remove the comma before it."
    if error.msg == "Extra data" and text[error.pos :].strip() == ",":
        return " Remove the comma at the end of the line."
    if text[error.pos : error.pos + 1] == "'":
        return ' JSON has "double" quotes; Python writes it with `json.dumps`.'
    return ""


def _refuse_whole(path: Path, value: dict[str, Any]) -> None:
    """Refuse an object that is the whole file and holds rows instead of being one.

    Raises:
        DataError: it is of such a shape. The message says which, and the way out.
    """
    lists = {key: entries for key, entries in value.items() if isinstance(entries, list) and entries}
    of_objects = [key for key, entries in lists.items() if all(isinstance(e, dict) for e in entries)]
    compound = lists or all(isinstance(entry, dict) for entry in value.values())
    key = next(iter(of_objects), "")
    if not value or not compound or "conversations" in value or "messages" in value:
        return
    if {"images", "annotations"} <= value.keys():
        shape = "coco"
    elif key and not {"image", "question", "label", "query", "instruction"} & value.keys():
        shape = "list"
    elif not lists and not all(name.isdigit() for name in next(iter(value.values()))):
        shape = "keys"
    elif all(isinstance(entry, list | dict) for entry in value.values()):
        shape = "columns"
    else:
        return
    stem, file = shlex.quote(path.stem), shlex.quote(str(path))
    text = _SHAPES[shape].format(key=key, keys="', '".join(of_objects), path=path, stem=stem, file=file)
    raise DataError(f"{path} is {text}. Every row must be one object, like {EXAMPLE}")


def csv_rows(path: Path, split: str = "") -> Iterator[Row]:
    """The rows of a table with a header. Empty cells are None; a list is JSON, or items separated by "|".

    The separator is that of the file's ending, or another one if the header has only that.

    Raises:
        DataError: the first line names no columns, or one twice; a row has another number of cells; a quote
            does not close, or closes inside its cell.
    """
    csv.field_size_limit(2**31 - 1)  # a cell may be an image
    text = read_text(path)
    separator = _separator(path, text)
    records = _records(path, text, separator)
    _, _, header = next(records, (0, 0, []))
    names = [name.strip("\ufeff").strip() for name in header]
    filled = [name for name in names if name]
    if repeated := [name for name in dict.fromkeys(filled) if filled.count(name) > 1]:
        raise DataError(f"{path}: its first line names two columns '{repeated[0]}'. Rename or remove one.")
    if data := [name for name in filled if _is_picture(name)]:
        raise DataError(
            f"{path}:1: the first line must name the columns, like image,question,answer, and this one holds "
            f"{brief(data[0])}. Put a line of names above it."
        )
    lines = text.split("\n")
    for first, last, cells in records:
        if len(cells) != len(names):
            raise DataError(
                f"{path}:{first}: {len(cells)} cells, but the first line names {len(names)} columns. "
                'Put cells that contain a separator in "quotes".'
            )
        origin = f"{path}:{last}"
        if first < last:
            _check_swallowed(f"{path}:{first}", lines[first - 1 : last], separator, names)
        pairs = zip(names, cells, strict=True)
        values: dict[str, Any] = {name: cell if cell.strip() else None for name, cell in pairs}
        for name in LISTS:
            if values.get(name) is not None:
                values[name] = list_in(values[name], name, origin)
        yield Row(origin, values, split)


def _separator(path: Path, text: str) -> str:
    """What separates the cells of a table, by the name of the file and its first line."""
    own = SEPARATORS[path.suffix.lower()]
    header = text.lstrip("\n").partition("\n")[0]
    if not header.strip():
        raise DataError(f"{path} is empty. Its first line must name the columns, like image,question,answer.")
    if re.fullmatch(r'"?sep=."?', header.strip()):
        raise DataError(
            f"{path}:1: remove the line '{header.strip()}'. The first line must name the columns."
        )
    if own in header:
        return own
    return next((other for other in _OTHER_SEPARATORS if other in header), own)


def _records(path: Path, text: str, separator: str) -> Iterator[tuple[int, int, list[str]]]:
    """(first line, last line, cells) of each row, without blank ones."""
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            last, fix = reader.line_num, 'A quote inside a "quoted" cell is written twice: "".'
            if "end of data" in str(error):
                problem = 'a cell of this row begins with a quote (") that never closes'
            elif last > first:
                problem = f'a cell of this row begins with a quote (") that does not close before line {last}'
            else:
                problem = 'a cell begins with a quote (") and goes on after the closing one'
            if path.suffix.lower() == ".tsv":
                fix += _UNQUOTED.format(file=shlex.quote(str(path)), stem=shlex.quote(path.stem))
            raise DataError(f"{path}:{first}: {problem}. Close it, or remove it. {fix}") from error
        if any(cell.strip() for cell in cells):
            yield first, reader.line_num, cells


def _check_swallowed(origin: str, lines: list[str], separator: str, names: list[str]) -> None:
    """Refuse a row of several lines whose later lines are rows of their own: between a quote that is not
    closed and the next quote, rows would be lost.

    Args:
        origin: its file and first line.
        lines: its lines.
        separator: of the cells.
        names: of the columns.

    Raises:
        DataError: a later line has as many cells as a row, and an image where the first line has one.
    """
    plain = [line.replace('"', "").split(separator) for line in lines]
    heads = (plain[0], next(csv.reader(lines[:1], delimiter=separator), []))
    for number, row in enumerate(plain[1:], start=1):
        if len(row) == len(names) and any(
            _same_kind(*cells) for head in heads for cells in zip(names, head, row, strict=False)
        ):
            raise DataError(
                f'{origin}: a cell of this row begins with a quote (") that does not close, and the row '
                f"{brief(lines[number])} would become part of the cell. Close the quote, remove it, or write "
                "the cell on one line."
            )


def _same_kind(column: str, one: str, other: str) -> bool:
    """Whether two cells name images: by their looks, or in a column of images by names that differ in digits
    alone."""
    if column in IMAGE_COLUMNS:
        one, other = (re.sub(r"\d+", "0", cell.strip()) for cell in (one, other))
    return (one == other and column in IMAGE_COLUMNS) or (_is_picture(one) and _is_picture(other))


def _is_picture(cell: str) -> bool:
    """Whether a cell names or holds an image, by its looks."""
    ending = os.path.splitext(cell.strip())[1].lower()
    return ending in PICTURES or re.match(r"data:image/|https?://|[A-Za-z0-9+/]{200}", cell) is not None
