"""`load_data`: an embedded domain, a benchmark, a manifest or your own files become a `Data` set."""

import difflib
import functools
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from craft.core.errors import DataError
from craft.core.files import user_path
from craft.data.benchmarks import BENCHMARKS
from craft.data.choices import AnswerWith, Distractors
from craft.data.compose import Composition, Similarity, compose
from craft.data.domains.embedded import EMBEDDED
from craft.data.levels import with_white
from craft.data.manifest import MANIFEST, read_manifest
from craft.data.readers.folder import METADATA, metadata_tables, read_folder, read_image_folder
from craft.data.readers.hub import HUB
from craft.data.readers.pictures import Fetch
from craft.data.readers.tables import TABLES, TAR, read_tables, tables_in
from craft.data.readers.text import foreign
from craft.data.sample import Data, Raw
from craft.data.spelling import refuse_locale
from craft.data.splits import split_names


@dataclass(frozen=True)
class Reading:
    """What tables may hold. `craft data prepare` allows more, because it writes the images to files.

    Attributes:
        fetch: fetches an image from a URL; None refuses URLs.
        tars: read tars in WebDataset's layout.
        outside: allow tables to name images that are not below the root, or the folder of the table.
    """

    fetch: Fetch | None = None
    tars: bool = False
    outside: bool = True


IN_PLACE = Reading()
"""As everything but `prepare` reads."""


def load_data(
    data: str | Path,
    root: str | Path | None = None,
    seed: int = 0,
    answer_with: AnswerWith = "option",
    distractors: Distractors = "random",
    unseen_fraction: float | int = 0.2,
    limit: int | None = None,
    similarity: Similarity = None,
    *,
    held_out: Sequence[str] | None = None,
    split_seed: int = 0,
    domain: str | None = None,
    columns: Mapping[str, str] | None = None,
    white_level: float | None = None,
    splits: Sequence[str] = (),
    partial: bool = False,
) -> Data:
    """Read a data set, split it, hold classes out, and write the multiple-choice questions.

    The division into training and test depends on `split_seed` alone, so that an encoder adapted with one
    seed is never tested on its training images under another. `seed` settles the held-out classes, the
    validation slice, the distractors and the order of the options.

    Args:
        data: the name of an embedded domain or a benchmark, a folder of class folders, a table of questions
            (JSONL, JSON, CSV, TSV, parquet), or a folder that `craft data prepare` wrote ("./apparel" is a
            folder of that name, "apparel" the embedded domain).
        root: the folder of a benchmark; otherwise the folder that relative paths (of `data`, and of the
            images in a table) start from.
        seed: of everything random but the division into training and test.
        answer_with: "option" (its text) or "letter".
        distractors: "random", or "hard" by `similarity`.
        unseen_fraction: the share of the classes of a classification set that is held out of training.
        limit: at most this many samples in each split, taken evenly from the classes.
        similarity: how similar the class names are, for hard distractors.
        held_out: hold out exactly these classes instead (to evaluate an encoder by its own manifest).
        split_seed: of the division into training and test, if the source has none.
        domain: what the images are of, in words, for your own files; by default the folder's name.
        columns: CRAFT's field -> the column of your table, if they differ.
        white_level: the value that is white in images of more than 8 bits; None: the smallest of 10, 12, 14
            and 16 bits that holds the values of all images (1 for floats in 0..1).
        splits: what splits with other names are: NAME=SPLIT, with train, validation, test or none (not read);
            the name others stands for all of them.
        partial: accept a copy of a benchmark with fewer classes than the benchmark has.

    Raises:
        DataError: nothing there (with a did-you-mean), a tar or hub data set that must be prepared first, no
            samples, splits with unknown names, fewer classes than the benchmark has, a single class, a broken
            row, choices without the answer, repeated ids, missing images.
            Images are not decoded here but by `verify_images`.

    Source: §4.1, §11 (four options after FOCI, 20 % of the labels held out); splits and seeds are ours.
    """
    composition = Composition(
        seed=seed,
        answer_with=answer_with,
        distractors=distractors,
        unseen_fraction=unseen_fraction,
        limit=limit,
        similarity=similarity,
        held_out=held_out,
        split_seed=split_seed,
    )
    raw = read_data(data, root, domain, columns, splits=splits, partial=partial)
    return compose(with_white(raw, white_level), composition)


def read_data(
    data: str | Path,
    root: str | Path | None = None,
    domain: str | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    reading: Reading = IN_PLACE,
    splits: Sequence[str] = (),
    partial: bool = False,
) -> Raw:
    """The samples of a data set as found, before anything random.

    Args:
        data, root, domain, columns, splits, partial: as in `load_data`.
        reading: what tables may hold.

    Raises:
        DataError: as `load_data`.
        ConfigError: an entry of `splits` is not NAME=SPLIT.
    """
    data, names = as_setting(data), split_names(splits)
    if data in EMBEDDED:
        return EMBEDDED[data].load()
    if data in BENCHMARKS and not str(root or "").startswith(HUB):
        return BENCHMARKS[data].load(root, names, partial)
    if data in BENCHMARKS or data.startswith(HUB):
        raise not_prepared(data, root, domain, columns)
    base = user_path(root) if root is not None else None
    path = located(data, base)
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise DataError(f"the folder {path} may not be read. Change its permissions (`chmod u+rx {path}`).")
    if path.is_dir() and (path / MANIFEST).is_file():
        return read_manifest(path, base, reading.outside)
    top = path if path.is_dir() else None
    read = functools.partial(
        read_tables,
        root=base,
        domain=domain,
        columns=columns,
        fetch=reading.fetch,
        top=top,
        names=names,
        outside=reading.outside,
    )
    tables = tables_in(path, names) if top is not None else [path] if path.is_file() else []
    if any(is_tar(table) for table in tables) and not reading.tars:
        raise not_prepared(data, root, domain, columns)
    if top is not None and all(table.stem.lower() == METADATA for table in tables):
        refuse_locale(name for _, folders, files in os.walk(path) for name in (*folders, *files))
        if tables := metadata_tables(path, (columns or {}).values()):
            return read_image_folder(path, tables, read, names)
        return read_folder(path, domain, names)
    if tables and tables[0].suffix.lower() in (*TABLES, TAR):
        raw = read(tables)
        raw.notes += [] if top is None else _not_read(top, tables)
        return raw
    if path.exists():
        raise DataError(
            f"{path} is neither a folder of class folders nor a table of questions ({', '.join(TABLES)}). "
            f"{foreign(path) or 'Let the name of a table end in one of these.'}"
        )
    raise _nothing_at(data, path)


def _not_read(folder: Path, tables: Sequence[Path]) -> list[str]:
    """A note about tables next to those of splits."""
    others = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in (*TABLES, TAR)]
    others = [name for name in others if folder / name not in tables and not name.startswith(".")]
    if not others or any(path.parent != folder for path in tables):
        return []
    stem = Path(others[0]).stem
    return [
        f"not read: {', '.join(others)}, because the names are not those of splits; --splits {stem}=train "
        f"reads {others[0]}"
    ]


def not_prepared(
    data: str,
    root: str | Path | None = None,
    domain: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> DataError:
    """The error for a tar or a hub data set: which command writes it to a folder, and what to use then."""
    flags = ["--root", str(root)] if root is not None else []
    flags += ["--domain", domain] if domain else []
    for field, column in (columns or {}).items():
        flags += ["--column", f"{field}={column}"]
    command = shlex.join(["craft", "data", "prepare", data, *flags])
    return DataError(
        f"{root if str(root).startswith(HUB) else data} is not read in place: CRAFT first writes tars and "
        f"hub data sets to a local folder. Run `{command}`, then use {prepared_folder(data)} as the data."
    )


def prepared_folder(data: str | Path) -> Path:
    """Where `craft data prepare` writes this data unless `--out` says otherwise."""
    return Path("prepared") / short_name(data)


def located(data: str | Path, base: Path | None) -> Path:
    """The path that is meant: `data`, or if that does not exist, `data` inside `base`."""
    path = user_path(data)
    return base / path if base is not None and not path.exists() else path


def is_tar(path: Path) -> bool:
    """Whether a file is a tar by its name."""
    return path.suffix.lower() == TAR


def _nothing_at(data: str, path: Path) -> DataError:
    siblings = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(data, [*EMBEDDED, *BENCHMARKS, *siblings], 1, 0.6)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return DataError(
        f"there is no data at '{data}', and no embedded domain or benchmark of that name.{hint} "
        f"Embedded: {', '.join(EMBEDDED)}; or a benchmark (`craft data list`), a folder of class folders, or "
        f"a table ({', '.join(TABLES)})."
    )


def as_setting(data: str | Path) -> str:
    """Data as settings name them: text. `Path("./apparel")` has lost its "./"; if there is such a folder, the
    result has it again, so that it does not mean the embedded domain or benchmark of that name."""
    text = str(data)
    known = text in EMBEDDED or text in BENCHMARKS
    return os.path.join(os.curdir, text) if known and isinstance(data, Path) and data.exists() else text


def short_name(data: str | Path) -> str:
    """A name for a folder made for this data: "birds" for birds.jsonl. For "." and "..", the folder's real
    name, so that paths of CRAFT's own do not lead elsewhere."""
    return Path(os.path.abspath(data)).stem or "data"
