"""Rows of parquet files, as hub data sets are stored: class names for numbers, pictures left in place."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.data.folder import SPLIT_NAMES
from craft.data.packed import ParquetCell


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        origin: where it stands ("a.jsonl:3"), for messages.
        values: its fields.
        split: of the file it stands in; "" where the file's name does not say.
    """

    origin: str
    values: dict[str, Any]
    split: str = ""


def parquet_files(root: Path) -> dict[str, list[Path]]:
    """The parquet files below `root`, by the folder that tells configurations of a hub data set apart.

    `data/` and folders named like a split do not count: `data/train-*.parquet` and `ScienceQA-IMG/test/*`
    belong to the configurations "" and "ScienceQA-IMG".
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.parquet")):
        parts = path.relative_to(root).parts[:-1]
        if any(part.startswith(".") for part in parts):
            continue
        kept = [part for part in parts if part != "data" and part.lower() not in SPLIT_NAMES]
        found.setdefault("/".join(kept), []).append(path)
    return found


def read_parquet(paths: list[Path], root: Path | None = None, top: Path | None = None) -> Iterator[Row]:
    """The rows of parquet files in order. Numbers of a class column become the names that the file (or the
    README.md in `root`) gives them, and -1 None; pictures become `ParquetCell`s, None where there is none.
    `top` is as in `split_of`.

    Raises:
        DataError: a file is not parquet, or cut short.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    card = _names_in_card(root) if root is not None else {}
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                names = card | _names_in_schema(file.schema_arrow)
                yield from _rows(file, path, names, split_of(path, top))
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path} cannot be read as parquet: {reason} Copy the file again.") from error


def _rows(file: Any, path: Path, names: dict[str, list[str]], split: str) -> Iterator[Row]:
    import pyarrow as pa

    schema = file.schema_arrow
    binary = {f.name for f in schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)}
    packed = {f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0}
    # Of a picture only its path is read here: the bytes may be gigabytes.
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
                if values.get(name) == -1:  # as `datasets` writes where there is no label
                    values[name] = None
                elif isinstance(values.get(name), int) and 0 <= values[name] < len(words):
                    values[name] = words[values[name]]
            number += 1
            yield Row(f"{path}, row {number}", values, split)


def split_of(path: Path, top: Path | None = None) -> str:
    """The split that a file's name begins with, or the folder it lies in is called; "" where neither says.

    Args:
        path: the file.
        top: the folder that is read. Only those below it say something of its data; None is the file's own.
    """
    word = re.match(r"[A-Za-z]+", path.name)
    folder = "" if top is None or path.parent == top else path.parent.name
    for name in (word.group().lower() if word else "", folder.lower()):
        if name in SPLIT_NAMES:
            return SPLIT_NAMES[name]
    return ""


def _names_in_schema(schema: Any) -> dict[str, list[str]]:
    """Class names as `datasets` writes them into a parquet file."""
    raw = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(raw).get("info", {}).get("features", {}) if raw else {}
    return {
        column: list(feature["names"])
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def _names_in_card(root: Path) -> dict[str, list[str]]:
    """Class names in the YAML head of a hub data set's README.md."""
    import yaml

    try:
        head = (root / "README.md").read_text(encoding="utf-8").split("---")[1]
        infos = (yaml.safe_load(head) or {}).get("dataset_info") or []
    except (OSError, UnicodeDecodeError, IndexError, AttributeError, yaml.YAMLError):
        return {}
    found = {}
    for info in infos if isinstance(infos, list) else [infos]:
        for feature in info.get("features") or []:
            kind = feature.get("dtype")
            if isinstance(kind, dict) and "class_label" in kind:
                names = kind["class_label"].get("names") or {}
                numbered = names.items() if isinstance(names, dict) else enumerate(names)
                ordered = sorted(numbered, key=lambda item: int(item[0]))
                found[feature["name"]] = [str(name) for _, name in ordered]
    return found
