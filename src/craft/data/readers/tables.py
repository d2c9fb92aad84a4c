"""Your own tables as rows and samples: JSONL, JSON, CSV, TSV, parquet; for `craft data prepare` also tars."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.data.images import link_fix
from craft.data.problems import Problems
from craft.data.readers.packed import parquet_files, read_parquet, read_tar
from craft.data.readers.pictures import Fetch
from craft.data.readers.rows import Row, RowReader, is_nan
from craft.data.readers.text import EXAMPLE, SEPARATORS, csv_rows, json_rows
from craft.data.sample import Raw, Sample, Task
from craft.data.spelling import words
from craft.data.splits import (
    LEFT_OUT,
    SPLIT_NAMES,
    SplitNames,
    file_splits,
    split_called,
    unknown_splits,
)

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""File name endings (lower case) of tables."""

TAR = ".tar"
"""The ending of shards in WebDataset's layout, which `craft data prepare` reads in addition."""

SPLITLIKE = (*SPLIT_NAMES, "metadata")
"""Names (lower case) of files that say what they are in their folder, not what the data set is called."""


def tables_in(folder: Path, names: SplitNames = SPLIT_NAMES) -> list[Path]:
    """The tables of a folder: parquet files at any depth, else tars, else files with the name of a split
    ("train.jsonl") or "metadata". Empty if there are none.

    Raises:
        DataError: there are parquet files of several configurations.
    """
    if configurations := parquet_files(folder):
        if len(configurations) > 1:
            raise DataError(
                f"{folder} has several configurations: {', '.join(sorted(configurations))}. "
                "Use the folder of one of them."
            )
        return next(iter(configurations.values()))
    endings = (*TABLES, TAR)
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in endings and not p.name.startswith("."))
    tars = [path for path in files if path.suffix.lower() == TAR]
    named = [path for path in files if path.stem.lower() in {*SPLITLIKE, *names}]
    return tars or named


def read_tables(
    paths: Sequence[Path],
    root: Path | None = None,
    domain: str | None = None,
    columns: Mapping[str, str] | None = None,
    fetch: Fetch | None = None,
    top: Path | None = None,
    names: SplitNames = SPLIT_NAMES,
    outside: bool = True,
) -> Raw:
    """Read the rows of tables as samples; image paths are relative to the file (or to `root`).

    The set is a "classification" if every row is a labelled image, or has choices and its label is its
    answer; otherwise it is "vqa". The contrastive loss gets question and answer as a statement, or the class
    text if a `domain` ("bird") is known and the label is the answer.

    Args:
        paths: the tables. `file_splits` says which split the rows of each belong to, unless they have a
            column `split`.
        root: the folder that image paths start from.
        domain: what the images are of, in words.
        columns: CRAFT's field -> the table's column, if they differ.
        fetch: fetches an image from a URL; None refuses URLs.
        top: the folder that holds the tables; None for a single file.
        names: what the names of splits mean.
        outside: allow image paths that leave `root` (or `top`, or the folder of the file).

    Raises:
        DataError: bad JSON, a missing or wrong field, choices without the answer, a repeated id, missing
            images (the first few are named with file and line), or no rows at all.
    """
    single = len(paths) == 1 and paths[0].stem.lower() not in SPLITLIKE
    folder = top if top is not None and paths[0].stem.lower() == "metadata" else paths[0].parent
    name = paths[0].stem if single else folder.resolve().name
    samples: list[Sample] = []
    problems, rows, ids, unknown = Problems("rows"), 0, dict[str, str](), dict[str, str]()
    shared = os.path.commonpath([path.parent for path in paths])
    splits = file_splits(paths, top, names)
    column = (columns or {}).get("split", "split")
    for path in (path for path in paths if splits[path] != LEFT_OUT):
        reader = RowReader(
            path=str(path),
            name=path.relative_to(shared).as_posix(),
            base=root if root is not None else path.parent,
            default_domain=words(name),
            domain=domain,
            columns=dict(columns or {}),
            fetch=fetch,
            lists_in_cells=path.suffix.lower() in SEPARATORS,
            inside=None if outside else _with_blobs(root or top or path.parent),
        )
        for row in read_rows(path, problems, root or path.parent, splits[path]):
            split = _split_of(row, column, names)
            if split == LEFT_OUT:
                continue
            if split is None:
                name_of_split = str(row.values[column])
                if name_of_split not in unknown:
                    unknown[name_of_split] = f"{row.origin}: unknown split {name_of_split!r}; the table"
                    problems.add(unknown_splits(unknown[name_of_split], [name_of_split]))
                continue
            row = replace(row, split=split)
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
    if unknown and len(unknown) == len(problems.messages):
        raise unknown_splits(next(iter(unknown.values())), unknown)
    problems.stop(rows + len(problems.messages))
    source = str(paths[0]) if len(paths) == 1 else str(paths[0].parent)
    if not samples:
        raise DataError(f"{source} has no rows. Write one JSON object per line, like {EXAMPLE}")
    check_images(samples, paths[0].parent if root is None else root)
    return Raw(name, _task(samples), domain or words(name), samples, source=source)


def _split_of(row: Row, column: str, names: SplitNames) -> str | None:
    """The split of a row: that of its own column, or that of its file; None if it is unknown."""
    value = row.values.get(column)
    return row.split if value in (None, "") or is_nan(value) else split_called(str(value), names)


def _with_blobs(folder: Path) -> Path:
    """The folder that holds the files of `folder`. In the cache of the Hugging Face hub they are links into
    `blobs`, next to `snapshots`."""
    for parent in (folder, *folder.parents):
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return parent.parent
    return folder


def check_images(rows: Sequence[Any], base: Path, fix: str = "correct them, or put the files there") -> None:
    """Refuse rows whose image file does not exist.

    Args:
        rows: what the rows became; each has an `image` and an `origin`.
        base: the folder that paths start from.
        fix: what a user can do, for the message.

    Raises:
        DataError: there are such rows. The message names the first five, with file and line.
    """
    files = {row.image for row in rows if isinstance(row.image, str)}
    gone = {file for file in files if not os.path.isfile(file)}
    missing = [row for row in rows if isinstance(row.image, str) and row.image in gone]
    if missing:
        examples = "; ".join(f"{row.image} ({row.origin})" for row in missing[:5])
        more = f"; and {len(missing) - 5} more" if len(missing) > 5 else ""
        if links := [Path(file) for file in sorted(gone) if os.path.islink(file)]:
            fix = f"{len(links)} of them are links that lead nowhere. {link_fix(links)}"
        raise DataError(
            f"{len(missing)} of the {len(rows)} rows name an image that does not exist: {examples}{more}. "
            f"Paths are relative to {base}; {fix}."
        )


def _task(samples: Sequence[Sample]) -> Task:
    """What the rows are together.

    Raises:
        DataError: labelled images without an answer among rows with one.
    """
    bare = [s for s in samples if s.label is not None and not s.answer]
    if bare and len(bare) < len(samples):
        raise DataError(
            f"{bare[0].origin}: a labelled image without an answer among rows that have one. "
            "Give all rows an answer, or none."
        )
    labelled = all(s.label is not None and (not s.answer or s.choices) for s in samples)
    return "classification" if labelled and all(s.answer_text in (s.label, "") for s in samples) else "vqa"


def read_rows(path: Path, problems: Problems, root: Path | None = None, split: str = "") -> Iterator[Row]:
    """The rows of one file. Lines that are not rows are recorded in `problems`.

    Args:
        path: the file.
        problems: collects the mistakes.
        root: the folder of a README.md that may name the classes of a parquet file.
        split: of the rows, unless they say otherwise.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from read_parquet(path, split, root)
    elif kind == TAR:
        yield from read_tar(path, split)
    elif kind in SEPARATORS:
        yield from csv_rows(path, split)
    else:
        yield from json_rows(path, problems, split)
