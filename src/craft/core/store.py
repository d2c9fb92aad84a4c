"""Stored results, each with what decides it: JSON records in a folder, and logs of JSON lines."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from craft.core.errors import CheckpointError, CraftError
from craft.core.files import append_text, read_json, write_json

T = TypeVar("T")
Row = Mapping[str, Any]


class RecordStore:
    """JSON records. Each is stored together with its identity, which is everything that decides its content.

    Every label has a file of its own, which is either whole or absent. Processes that share a folder can
    therefore write records of different labels at the same time.

    Args:
        folder: the folder of the files, LABEL.json; None keeps the records in memory.
        identity_name: the name of the identity among the fields of a record.
    """

    def __init__(self, folder: Path | None, identity_name: str = "key") -> None:
        self.folder = folder
        self.identity_name = identity_name
        self._memory: dict[str, dict[str, Any]] = {}

    def path(self, label: str) -> Path:
        """The file of a label."""
        assert self.folder is not None
        return self.folder / f"{label}.json"

    def read(self, label: str) -> dict[str, Any] | None:
        """The record of a label, whatever its identity; None if there is none.

        Raises:
            CheckpointError: the file is damaged.
        """
        if self.folder is None:
            return self._memory.get(label)
        path = self.path(label)
        if not path.is_file():
            return None
        record = read_json(path)
        if not isinstance(record, dict):
            raise CheckpointError(f"{path} is not a result of CRAFT; remove it, and CRAFT makes it again")
        return record

    def get(self, label: str, identity: Any) -> dict[str, Any] | None:
        """The record of a label if it has this identity, otherwise None.

        Raises:
            CheckpointError: the file is damaged.
        """
        record = self.read(label)
        same = record is not None and record.get(self.identity_name) == _as_json(identity)
        return record if same else None

    def put(self, label: str, identity: Any, content: Mapping[str, Any]) -> None:
        """Store a record; it replaces the earlier one of its label.

        Args:
            label: the name of the record.
            identity: everything that decides the content.
            content: the other fields.

        Raises:
            ConfigError: the file cannot be written.
        """
        record = {**content, self.identity_name: _as_json(identity)}
        if self.folder is None:
            self._memory[label] = record
        else:
            write_json(self.path(label), record)


def _as_json(value: Any) -> Any:
    """A value as it is when it comes back from JSON: tuples are lists."""
    return json.loads(json.dumps(value))


class JsonLog(Generic[T]):
    """Values by key in an append-only JSONL file, `values`; the last value of a key counts.

    If the machine stopped in the middle of a row, that row is removed. A complete last row without a line
    end, as some editors leave it, gets one.

    Args:
        path: the file; the first row creates it.
        parse: returns key and value of a row. A ValueError, KeyError or TypeError marks the row as damaged.
        damaged: returns the error for a damaged line, by its number.

    Raises:
        CheckpointError: the file cannot be read.
        CraftError: a line is damaged: the error that `damaged` returns.
    """

    def __init__(
        self, path: Path, parse: Callable[[Row], tuple[str, T]], damaged: Callable[[int], CraftError]
    ) -> None:
        self.path = path
        self.values: dict[str, T] = {}
        self._parse = parse
        content = _bytes_of(path)
        *lines, last = content.split(b"\n")
        for number, line in enumerate([*lines, last] if last else lines, start=1):
            try:
                key, value = parse(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                if number > len(lines) and _is_torn(last, first=number == 1):
                    os.truncate(path, len(content) - len(last))
                    return
                raise damaged(number) from error
            self.values[key] = value
        if last:
            append_text(path, "\n")

    def append(self, rows: Iterable[Row]) -> None:
        """Store rows; they are on disk before this returns.

        Raises:
            ConfigError: the file cannot be written.
        """
        rows = list(rows)
        append_text(self.path, json_lines(rows))
        self.values.update(map(self._parse, rows))


def _is_torn(line: bytes, first: bool) -> bool:
    """Whether a crash cut a row short. The only line of a file may also be somebody else's text, unless it
    begins as a row does."""
    try:
        json.loads(line)
    except ValueError:
        return not first or b'{"'.startswith(line[:2])
    return False


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a JSONL file. Text after the last line end, which a crash left, is removed from the file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    content = _bytes_of(path)
    *lines, last = content.split(b"\n")
    if last:
        os.truncate(path, len(content) - len(last))
    return lines


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from error


def json_lines(rows: Iterable[Row]) -> str:
    """Rows as JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
