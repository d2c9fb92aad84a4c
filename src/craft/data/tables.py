"""Rows of files of your own: JSONL, JSON, CSV, TSV, parquet, and tars in WebDataset's layout."""

import csv
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.core.progress import track
from craft.data.folder import SPLIT_NAMES
from craft.data.images import OTHERS, PICTURES
from craft.data.packed import FileSlice
from craft.data.parquet import Row, parquet_files, read_parquet, split_of
from craft.data.problems import Problems

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".tar")
"""File name endings (lower case) of what is read as rows."""

SPLITLIKE = (*SPLIT_NAMES, "metadata")
"""Names (lower case) of files that say what they are in their folder, not what the data set is called."""

EXAMPLE = '{"image": "a.jpg", "question": "What is this?", "answer": "an oak"}'
"""A row as messages show it."""

MANY = 20_000
"""Lines of a file from which on it is shown how far the reading is."""

MARKS = {".csv": ",", ".tsv": "\t"}
"""What stands between the cells of a file, by its ending (lower case)."""

LISTS = ("choices", "captions", "distractors")
"""Fields that hold a list."""


def tables_in(folder: Path) -> list[Path]:
    """The tables that a folder stands for: parquet files at any depth, else tars, else files that are called
    like a split ("train.jsonl") or "metadata". Empty where there are none.

    Raises:
        DataError: there are parquet files of several configurations.
    """
    if configurations := parquet_files(folder):
        if len(configurations) > 1:
            raise DataError(
                f"{folder} holds several configurations: {', '.join(sorted(configurations))}. "
                "Give the folder of one of them."
            )
        return next(iter(configurations.values()))
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in TABLES and not p.name.startswith("."))
    tars = [path for path in files if path.suffix.lower() == ".tar"]
    named = [path for path in files if path.stem.lower() in SPLITLIKE]
    return tars or named


def read_rows(
    path: Path, problems: Problems, root: Path | None = None, top: Path | None = None
) -> Iterator[Row]:
    """The rows of one file. Lines that are no rows go to `problems`.

    Args:
        path: the file.
        problems: gets them.
        root: where a README.md may name the classes of a parquet file.
        top: the folder that is read, where it is one: folders below it may name a split.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from read_parquet([path], root, top)
        return
    split = split_of(path, top)
    if kind == ".tar":
        yield from _tar(path, split)
    elif kind in MARKS:
        yield from _csv(path, MARKS[kind], split)
    else:
        text = _text(path)
        whole = kind == ".json" and text.lstrip()[:1] == "["
        yield from _json(path, text, split) if whole else _lines(path, text, split, problems)


def parse(text: str) -> Any:
    """`json.loads` with one error for whatever cannot be read.

    Raises:
        json.JSONDecodeError: not JSON; or nested too deep, or a number too long, to be read.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error).partition(";")[0], text, 0) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error}).") from error


def _lines(path: Path, text: str, split: str, problems: Problems) -> Iterator[Row]:
    lines = text.split("\n")
    shown = track(lines, f"reading {path.name}") if len(lines) >= MANY else lines
    for number, line in enumerate(shown, start=1):
        if not line.strip():
            continue
        try:
            value = parse(line)
            if not isinstance(value, dict):
                raise DataError(
                    f"{path}:{number}: a {type(value).__name__}, not an object. "
                    f"Every line must be one object, like {EXAMPLE}"
                )
        except json.JSONDecodeError as error:
            problems.add(
                DataError(
                    f"{path}:{number}: not valid JSON ({error.msg}, column {error.colno}). "
                    f"Every line must be one object, like {EXAMPLE}"
                )
            )
        except DataError as error:
            problems.add(error)
        else:
            yield Row(f"{path}:{number}", value, split)


def _json(path: Path, text: str, split: str) -> Iterator[Row]:
    """A JSON file that holds one list of objects, as LLaVA's do."""
    try:
        values = parse(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno})."
        ) from error
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise DataError(f"{path}, entry {number}: a {type(value).__name__}, not an object.")
        yield Row(f"{path}, entry {number}", value, split)


def _csv(path: Path, mark: str, split: str) -> Iterator[Row]:
    """A table with a head. Empty cells are None; a list is written as JSON, or with "|" between items."""
    csv.field_size_limit(2**31 - 1)  # a cell may be a picture
    reader = csv.DictReader(io.StringIO(_text(path)), delimiter=mark)
    if not reader.fieldnames:
        raise DataError(f"{path} is empty. Its first line must name the columns, like image,question,answer.")
    named = [name.strip() for name in reader.fieldnames if name.strip()]
    if twice := [name for name in dict.fromkeys(named) if named.count(name) > 1]:
        raise DataError(f"{path}: its first line names two columns '{twice[0]}'. Rename or remove one.")
    for cells in reader:
        origin = f"{path}:{reader.line_num}"
        if None in cells or None in cells.values():
            count = sum(value is not None for key, value in cells.items() if key is not None)
            found = count + len(cells.get(None) or [])  # type: ignore[call-overload]
            raise DataError(
                f"{origin}: {found} cells, and the head names {len(reader.fieldnames)} columns. "
                'Put cells that hold a separator in "quotes".'
            )
        values: dict[str, Any] = {key.strip(): cell if cell.strip() else None for key, cell in cells.items()}
        for name in LISTS:
            if values.get(name) is not None:
                values[name] = list_in(values[name])
        yield Row(origin, values, split)


def list_in(cell: str) -> list[Any]:
    """The list in a cell: JSON, or texts with "|" between them."""
    if cell.lstrip().startswith("["):
        try:
            found = parse(cell)
        except json.JSONDecodeError:
            pass
        else:
            return found if isinstance(found, list) else [found]
    return [part.strip() for part in cell.split("|")]


def _tar(path: Path, split: str) -> Iterator[Row]:
    """The samples of a WebDataset shard: files that share a name up to the first dot, in order.

    The picture becomes `image`, `.json` its fields, `.cls` the label, `.txt` a caption.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            key, values = "", dict[str, Any]()
            for member in tar:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                if not member.isfile() or name.startswith("."):
                    continue
                stem, _, ending = name.partition(".")
                if f"{folder}/{stem}" != key and values:
                    yield Row(f"{path}, sample {key.lstrip('/')}", values, split)
                    values = {}
                key = f"{folder}/{stem}"
                if "image" in values and f".{ending.lower()}" in OTHERS:
                    continue  # the same picture, in a kind that may not be readable
                values |= _member(tar, member, path, ending.lower())
            if values:
                yield Row(f"{path}, sample {key.lstrip('/')}", values, split)
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"{path} is not a whole, uncompressed tar ({error}). Unpack a compressed one, or copy it again."
        ) from error


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, ending: str) -> dict[str, Any]:
    if f".{ending}" in PICTURES:
        return {"image": FileSlice(str(path), member.offset_data, member.size, member.name)}
    if ending not in ("json", "txt", "cls"):
        return {}
    file = tar.extractfile(member)
    content = file.read() if file is not None else b""
    try:
        text = content.decode("utf-8").strip()
        if ending == "json":
            found = parse(text)
        else:
            found = {"label": text} if ending == "cls" else {"captions": [text]}
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: its member {member.name} cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: its member {member.name} must be a JSON object.")
    return found
