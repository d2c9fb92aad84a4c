"""Pictures that lie inside a larger file: a stretch of a tar, or a cell of a parquet file."""

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft.core.errors import DataError


class Packed(ABC):
    """A picture in a larger file. Two that are equal are the same picture."""

    @abstractmethod
    def read(self) -> bytes:
        """The bytes of the picture's own file.

        Raises:
            DataError: the larger file is gone, or shorter than it was.
        """


@dataclass(frozen=True)
class FileSlice(Packed):
    """`length` bytes of the file `path` from `offset` on: a member of an uncompressed tar."""

    path: str
    offset: int
    length: int
    name: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.name}"

    def read(self) -> bytes:
        """The bytes of the picture's own file."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                found = file.read(self.length)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        if len(found) != self.length:
            raise DataError(f"{self.path} is shorter than it was when {self.name} was found in it.")
        return found


@dataclass(frozen=True)
class ParquetCell(Packed):
    """The picture in `column` of row `row` of row group `group` of the parquet file `path`.

    Row groups are read whole and the last one is kept, so going through a file in order is fast and random
    access is slow; `craft data prepare` writes such pictures out as files.
    """

    path: str
    group: int
    row: int
    column: str

    def __str__(self) -> str:
        return f"{self.path} ({self.column}, row {self.row} of group {self.group})"

    def read(self) -> bytes:
        """The bytes of the picture's own file."""
        cell = _column(self.path, self.group, self.column)[self.row].as_py()
        value = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(value, bytes):
            raise DataError(f"{self} holds no picture but {type(value).__name__}.")
        return value


@functools.lru_cache(maxsize=1)
def _column(path: str, group: int, column: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(Path(path)) as file:
            return file.read_row_group(group, columns=[column]).column(0).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read: {reason}. Copy the file again.") from error
