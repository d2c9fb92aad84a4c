"""Your own images: class folders, directly or under train/ and test/, or Hugging Face's imagefolder, whose
tables (metadata.csv, metadata.jsonl) say what its images are."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from craft.core.errors import DataError
from craft.data.problems import Problems
from craft.data.readers.rows import IMAGE_COLUMNS
from craft.data.readers.scan import SHOWN, Scan, is_passed_over
from craft.data.readers.tables import TABLES, read_rows
from craft.data.sample import Raw, Sample, labelled
from craft.data.spelling import is_text, words
from craft.data.splits import LEFT_OUT, SPLIT_NAMES, SplitNames, split_called, unknown_splits

METADATA = "metadata"
"""The name of an imagefolder's tables, without their ending."""

CONTAINERS = frozenset(
    {"images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "masks", "mask", "labels"}
    | {"annotations", "data"}
)
"""Folder names (lower case) that say that there are images, not what they show."""

CLASS_WORDS = frozenset({"train", "valid"})
"""Names of splits that may also be classes, next to other class folders."""

_LAYOUT = "Expected FOLDER/<class>/*.jpg, or FOLDER/train/<class>/*.jpg and FOLDER/test/<class>/*.jpg."
_WAYS = (
    f"{_LAYOUT} Or say what the images are in a table next to them: metadata.csv (in FOLDER, or in its "
    "train/ and test/) with the columns file_name,label."
)


def read_folder(root: Path, domain: str | None = None, splits_called: SplitNames = SPLIT_NAMES) -> Raw:
    """Read a folder of class folders as labelled samples; the class word is the folder's name, "_" as space.

    Images may be at any depth below a class folder. The notes say what is passed over, by kind: hidden
    files, folders that systems add, files that are not images.

    Args:
        root: the folder.
        domain: what the images are of, in words; by default the folder's name.
        splits_called: what the names of folders next to train/ and test/ mean.

    Raises:
        DataError: no images, no class folders, other folders next to train/ and test/, folders that are
            splits or containers but no classes, two folders with the same class word, a name that is not
            UTF-8; or as `Scan.refuse`.
    """
    scan = Scan(root)
    children = scan.folders(root)
    scan.locked += [child for child in children if not os.access(child, os.R_OK | os.X_OK)]
    if scan.locked:  # what is in them decides what the others are
        scan.refuse()
    splits = [child for child in children if child.name.lower() in splits_called and _folders_in(child)]
    samples: list[Sample] = []
    if splits:
        meanings = {child: split_called(child.name, splits_called) for child in children}
        extra = [child for child, meaning in meanings.items() if meaning is None]
        if unknown := [child.name for child in extra if _folders_in(child)]:
            raise unknown_splits(root, unknown)
        if extra:
            raise DataError(
                f"{root} has other folders next to {', '.join(s.name for s in splits)}: "
                f"{', '.join(child.name for child in extra[:5])}. {_LAYOUT} Move them away, or leave them "
                f"out with --splits {extra[0].name}={LEFT_OUT}.{_tables_hint(root)}"
            )
        for child, meaning in meanings.items():
            if meaning != LEFT_OUT:
                samples += _class_folders(scan, scan.folders(child), str(meaning))
    else:
        _check_classes(root, children)
        samples = _class_folders(scan, children, "")
    scan.refuse()
    if not samples:
        loose = any(kind.startswith("images next to") for kind in scan.passed)
        problem = "has images but no class folders" if loose else "has no images in class folders"
        passed = "".join(f" ({note})" for note in scan.notes())
        raise DataError(f"the data folder {root} {problem}{passed}. {_WAYS}{_tables_hint(root)}")
    name, depth = root.resolve().name, 2 if splits else 1
    notes = [*scan.notes(), *_depth_note(samples, depth)]
    return Raw(name, "classification", domain or words(name), samples, source=str(root), notes=notes)


def _class_folders(scan: Scan, folders: Sequence[Path], split: str) -> list[Sample]:
    """The images below these class folders that CRAFT can open."""
    samples: list[Sample] = []
    names: dict[str, str] = {}
    for folder in folders:
        label = words(folder.name)
        if label in names:
            raise DataError(
                f"the folders {names[label]} and {folder.name} in {folder.parent} are both the class "
                f"'{label}'. Merge them, or rename one."
            )
        names[label] = folder.name
        for path in scan.below(folder):
            relative = path.relative_to(scan.root).as_posix()
            if not is_text(relative):
                raise DataError(f"the file name {str(path)!a} is not UTF-8. Rename it.")
            samples.append(labelled(relative, str(path), label, split, origin=str(path)))
    return samples


def _folders_in(folder: Path) -> list[Path]:
    return Scan(folder).folders(folder)


def _check_classes(root: Path, folders: Sequence[Path]) -> None:
    """Refuse folders that would be read as classes and are something else.

    Raises:
        DataError: splits without class folders, splits inside of classes, containers only, or a single
            folder that contains several.
    """
    names = [folder.name for folder in folders]
    splits = [name for name in names if name.lower() in SPLIT_NAMES]
    one_class_word = len(splits) == 1 < len(names) and splits[0].lower() in CLASS_WORDS
    if splits and not one_class_word:
        raise DataError(
            f"{root} has the folders {', '.join(splits)}, which are splits and not classes, and no class "
            f"folders are in them. {_WAYS}{_tables_hint(root)}"
        )
    inner = {folder: [child.name for child in _folders_in(folder)] for folder in folders}
    nested = [folder for folder, below in inner.items() if len(below) > 1]
    if folders and (all(name.lower() in CONTAINERS for name in names) or (len(names) == 1 and nested)):
        advice = f" If the class folders are in {nested[0]}, use that as the data." if nested else ""
        raise DataError(
            f"{root} has no folders but {', '.join(names)}, which cannot be the classes.{advice} "
            f"{_WAYS}{_tables_hint(root)}"
        )
    for folder in nested:
        if len(splits := [name for name in inner[folder] if name.lower() in SPLIT_NAMES]) > 1:
            raise DataError(
                f"the class folder {folder} has the folders {', '.join(splits)}, which would be mixed. "
                f"{_LAYOUT}"
            )


def _depth_note(samples: Sequence[Sample], depth: int) -> list[str]:
    """A note if no image lies directly in its class folder: the classes may be meant to be one level deeper.

    Args:
        samples: with paths relative to the data folder as ids.
        depth: of the class folders: 1, or 2 below train/ and test/.
    """
    folders = [sample.id.split("/")[:-1] for sample in samples]
    inner = {tuple(parts[: depth + 1]) for parts in folders}
    outer = {parts[:depth] for parts in inner}
    if any(len(parts) == depth for parts in folders) or len(inner) == len(outer):
        return []
    example = "/".join(min(inner))
    return [
        f"no image lies directly in a class folder: the classes are the {len(outer)} outer folders, not the "
        f"{len(inner)} folders in them ({example}, …)"
    ]


def _tables_hint(root: Path) -> str:
    """Which tables are there, which may say what the images are."""
    readable = [folder for folder in (root, *_folders_in(root)) if os.access(folder, os.R_OK)]
    paths = sorted(path for folder in readable for path in folder.iterdir())
    tables = [path for path in paths if path.suffix.lower() in TABLES and not is_passed_over(path.name)]
    named = ", ".join(map(str, tables[:SHOWN]))
    return f" There are tables; if one lists the images, use it as the data: {named}." if tables else ""


def metadata_tables(root: Path, columns: Collection[str] = ()) -> list[Path]:
    """The tables called "metadata" at any depth of a folder that name images, sorted, as in Hugging Face's
    imagefolder. Others say something else about the images, and are passed over.

    Args:
        root: the folder.
        columns: names of columns that the user mapped.

    Raises:
        DataError: two of them are in one folder.
    """
    tables = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not is_passed_over(name)]
        names = [n for n in files if os.path.splitext(n.lower())[0] == METADATA]
        paths = [Path(folder, name) for name in names if os.path.splitext(name)[1].lower() in TABLES]
        tables += [path for path in paths if _names_images(path, {*IMAGE_COLUMNS, *columns})]
    folders = Counter(path.parent for path in tables)
    if twice := [folder for folder, count in folders.items() if count > 1]:
        names = ", ".join(sorted(path.name for path in tables if path.parent == twice[0]))
        raise DataError(f"{twice[0]} has several tables of its images: {names}. Keep one of them.")
    return sorted(tables)


def _names_images(table: Path, columns: Collection[str]) -> bool:
    """Whether the first row of a table has one of these columns, or the table cannot be read."""
    try:
        row = next(iter(read_rows(table, Problems("rows"))), None)
    except DataError:
        return True  # reading it all says why
    return row is not None and not row.values.keys().isdisjoint(columns)


def read_image_folder(
    root: Path, tables: Sequence[Path], read: Callable[[Sequence[Path]], Raw], names: SplitNames = SPLIT_NAMES
) -> Raw:
    """Read Hugging Face's imagefolder: images, and tables that name and describe them.

    A folder called as a split (train/) says the split of its images, unless the table does. The notes count
    images that no table names.

    Args:
        root: the folder.
        tables: from `metadata_tables`.
        read: reads tables as samples.
        names: what the names of splits mean.

    Raises:
        DataError: as `read`; a split whose images no table names; images in splits and others in none, or in
            folders with unknown names; or as `Scan.refuse`.
    """
    scan = Scan(root)
    pictures = scan.below(root)
    for table in tables:
        scan.passed[table.suffix.lower()] -= 1
    scan.refuse()
    raw = read(tables)
    used = {os.path.abspath(sample.image) for sample in raw.samples if isinstance(sample.image, str)}
    unnamed = [path for path in pictures if os.path.abspath(path) not in used]
    read_parts = {_split_part(root, name, names) for name in used}
    lost = {_split_part(root, path, names) for path in unnamed} - read_parts
    if lost := [part for part in lost if names.get(part.lower(), LEFT_OUT) != LEFT_OUT]:
        raise DataError(
            f"{root} has images in {', '.join(sorted(lost))} that no table names; {tables[0]} names others. "
            f"Put a {tables[0].name} there too, or move that folder away."
        )
    if unnamed:
        examples = ", ".join(path.relative_to(root).as_posix() for path in unnamed[:SHOWN])
        more = ", …" if len(unnamed) > SHOWN else ""
        scan.passed[f"images that no table names ({examples}{more})"] = len(unnamed)
    samples = _split_by_folder(root, raw.samples, names)
    return replace(raw, samples=samples, source=str(root), notes=[*raw.notes, *scan.notes()])


def _split_by_folder(root: Path, samples: Sequence[Sample], names: SplitNames) -> list[Sample]:
    """The samples to read, with the splits that the folders of their images say, if any does.

    Raises:
        DataError: the folders of some are splits, and those of others are not.
    """
    folders = [_split_part(root, s.image, names) if isinstance(s.image, str) else "" for s in samples]
    splits = {folder.lower() for folder in folders if folder.lower() in names}
    if not splits or (len(splits) == 1 < len({*folders}) and splits <= CLASS_WORDS):
        return list(samples)
    read, unknown = [], list[str]()
    for sample, folder in zip(samples, folders, strict=True):
        split = sample.split or split_called(folder, names)
        if not sample.split and not folder:
            raise DataError(
                f"{sample.origin}: the image is in no folder of a split, and others in {root} are. Move it "
                "into one, or give all rows a column 'split'."
            )
        if split is None:
            unknown.append(folder)
        elif split != LEFT_OUT:
            read.append(replace(sample, split=split))
    if unknown:
        raise unknown_splits(root, unknown)
    return read


def _split_part(root: Path, path: str | Path, names: SplitNames) -> str:
    """The folder on the way from `root` to a file that is called as a split, or else the first one; "" if
    there is none."""
    try:
        folders = Path(os.path.abspath(path)).relative_to(os.path.abspath(root)).parts[:-1]
    except ValueError:  # the image is elsewhere
        return ""
    return next((name for name in folders if name.lower() in names), next(iter(folders), ""))
