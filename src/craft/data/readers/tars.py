"""Rows of uncompressed tars in WebDataset's layout; `craft data prepare` alone reads them."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.data.images import OTHERS, PICTURES, Packed
from craft.data.readers.rows import Row, parse_json


@dataclass(frozen=True)
class FileSlice(Packed):
    """`length` bytes of the file `path`, starting at `offset`: a member of an uncompressed tar."""

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
                content = file.read(self.length)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        if len(content) != self.length:
            raise DataError(f"{self.path} is shorter than it was when {self.name} was found in it.")
        return content


def read_tar(path: Path, split: str) -> Iterator[Row]:
    """The samples of a shard: successive files that share a name up to the first dot.

    The picture becomes `image`, `.json` its fields, `.cls` the label, `.txt` a caption.

    Raises:
        DataError: the file is compressed, cut short or no tar; a member cannot be read.
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
                    continue  # the same picture, in a format that may not be readable
                values |= _member(tar, member, path, ending.lower())
            if values:
                yield Row(f"{path}, sample {key.lstrip('/')}", values, split)
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"{path} is not a complete, uncompressed tar ({error}). Unpack it if it is compressed; otherwise "
            "copy it again."
        ) from error


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, ending: str) -> dict[str, Any]:
    """The fields that one member of a tar adds to its sample."""
    if f".{ending}" in PICTURES:
        return {"image": FileSlice(str(path), member.offset_data, member.size, member.name)}
    if ending not in ("json", "txt", "cls"):
        return {}
    file = tar.extractfile(member)
    content = file.read() if file is not None else b""
    try:
        text = content.decode("utf-8").strip()
        if ending == "json":
            fields = parse_json(text)
        else:
            fields = {"label": text} if ending == "cls" else {"captions": [text]}
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: its member {member.name} cannot be read ({error}).") from error
    if not isinstance(fields, dict):
        raise DataError(f"{path}: its member {member.name} must be a JSON object.")
    return fields
