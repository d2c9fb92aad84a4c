"""Rows of files that images are packed in: parquet, and uncompressed tars in WebDataset's layout, which
`craft data prepare` alone reads."""

import functools
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from craft.core.errors import DataError
from craft.data.images import OTHERS, PICTURES, Packed
from craft.data.readers.rows import Row, parse_json
from craft.data.readers.text import foreign
from craft.data.splits import SPLIT_NAMES, split_parents


@dataclass(frozen=True)
class ParquetCell(Packed):
    """The image in `column` of row `row` of row group `group` of the parquet file `path`.

    A row group is read as a whole, and only the last one stays in memory. So reading a file in order is fast
    and random access is slow; `craft data prepare` writes each of these images to a file.
    """

    path: str
    group: int
    row: int
    column: str

    def __str__(self) -> str:
        return f"{self.path} ({self.column}, row {self.row} of group {self.group})"

    def read(self) -> bytes:
        """The bytes of the image's own file."""
        cell = _column(self.path, self.group, self.column)[self.row].as_py()
        value = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(value, bytes):
            raise DataError(f"{self} contains no image but {type(value).__name__}.")
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


def parquet_files(root: Path) -> dict[str, list[Path]]:
    """The parquet files below `root`, by the folder that distinguishes configurations of a hub data set.

    `data/`, and folders with the name of a split or next to one, do not count: `data/train-*.parquet` and
    `ScienceQA-IMG/test/*` belong to the configurations "" and "ScienceQA-IMG".
    """
    return configurations_of([path for path in root.rglob("*") if path.suffix.lower() == ".parquet"], root)


def configurations_of(paths: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """`parquet_files` for files that need not exist."""
    configurations: dict[str, list[Path]] = {}
    parents = split_parents(paths)
    for path in sorted(paths):
        parts = path.relative_to(root).parts[:-1]
        if any(part.startswith(".") for part in parts):
            continue
        parts = parts[:-1] if path.parent.parent in parents else parts
        names = [part for part in parts if part != "data" and part.lower() not in SPLIT_NAMES]
        configurations.setdefault("/".join(names), []).append(path)
    return configurations


def read_parquet(path: Path, split: str = "", root: Path | None = None) -> Iterator[Row]:
    """The rows of a parquet file in order.

    A number in a class column becomes the name that the file (or the README.md in `root`) gives it, and -1
    becomes None. An image becomes a `ParquetCell`, or None if there is none.

    Args:
        path: the file.
        split: of the rows.
        root: the folder of a README.md that may name classes.

    Raises:
        DataError: a file is not parquet, is cut short, or has two columns of one name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    card = _names_in_card(root) if root is not None else {}
    try:
        with pq.ParquetFile(path) as file:
            names = card | _names_in_schema(file.schema_arrow, path)
            yield from _rows(file, path, names, split)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        fix = foreign(path) or "Copy the file again."
        raise DataError(f"{path} cannot be read as parquet: {reason} {fix}") from error


def _rows(file: Any, path: Path, names: dict[str, list[str]], split: str) -> Iterator[Row]:
    import pyarrow as pa

    schema = file.schema_arrow
    if repeated := [name for name in dict.fromkeys(schema.names) if schema.names.count(name) > 1]:
        raise DataError(f"{path} has two columns '{repeated[0]}'. Rename or remove one.")
    binary = {f.name for f in schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)}
    packed = {f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0}
    # Only the path of an image is read here: its bytes may be gigabytes.
    columns = [f"{name}.path" if name in packed else name for name in schema.names if name not in binary]
    number = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        rows = file.read_row_group(group, columns=columns).to_pylist() if columns else [{}] * count
        for index, row in enumerate(rows):
            for name in packed:
                there = row.get(name, {}) is not None
                row[name] = ParquetCell(str(path), group, index, name) if there else None
            values = row | {name: ParquetCell(str(path), group, index, name) for name in binary}
            for name, words in names.items():
                if values.get(name) == -1:  # how the hub marks a missing label
                    values[name] = None
                elif isinstance(values.get(name), int) and 0 <= values[name] < len(words):
                    values[name] = words[values[name]]
            number += 1
            yield Row(f"{path}, row {number}", values, split)


def _names_in_schema(schema: Any, path: Path) -> dict[str, list[str]]:
    """Class names by column, as Hugging Face writes them into a parquet file.

    Raises:
        DataError: they are not in that form.
    """
    raw = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(raw).get("info", {}).get("features", {}) if raw else {}
        labels = {
            column: feature["names"]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
        return TypeAdapter(dict[str, list[str]]).validate_python(labels)
    except (ValueError, LookupError, AttributeError) as error:
        raise DataError(
            f"{path}: the class names in its metadata ('huggingface') are damaged. Copy the file again."
        ) from error


def _names_in_card(root: Path) -> dict[str, list[str]]:
    """Class names by column in the YAML head of a hub data set's README.md."""
    import yaml

    try:
        head = (root / "README.md").read_text(encoding="utf-8").split("---")[1]
        infos = (yaml.safe_load(head) or {}).get("dataset_info") or []
        names_by_column = {}
        for info in infos if isinstance(infos, list) else [infos]:
            for feature in info.get("features") or []:
                kind = feature.get("dtype")
                if isinstance(kind, dict) and "class_label" in kind:
                    names = kind["class_label"].get("names") or {}
                    numbered = names.items() if isinstance(names, dict) else enumerate(names)
                    ordered = sorted(numbered, key=lambda item: int(item[0]))
                    names_by_column[feature["name"]] = [str(name) for _, name in ordered]
        return names_by_column
    except (OSError, ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError):
        return {}  # a README.md that is no card


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
        """The bytes of the image's own file."""
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

    The image becomes `image`, `.json` its fields, `.cls` the label, `.txt` a caption.

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
                    continue  # the same image, in a format that may not be readable
                fields, image = _member(tar, member, path, ending.lower()), values.get("image")
                if isinstance(image, FileSlice) and not isinstance(fields.get("image"), FileSlice):
                    fields.pop("image", None)  # where the image was before it was packed
                elif isinstance(image, FileSlice) and Path(image.name).suffix.lower() not in OTHERS:
                    raise DataError(
                        f"{path}, sample {key.lstrip('/')}: two images, {image.name} and {member.name}. A "
                        "sample must be about exactly one; write the tar without the other."
                    )
                values |= fields
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
