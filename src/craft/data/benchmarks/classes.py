"""Class names in the spellings that copies of a benchmark use, and the two common layouts of class data."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from craft.core.errors import DataError
from craft.data.benchmarks.base import Note, column, row_id
from craft.data.readers.rows import Row
from craft.data.readers.scan import Scan, folders_in
from craft.data.sample import Sample, labelled
from craft.data.spelling import squeezed
from craft.data.splits import LEFT_OUT, split_called, unknown_splits


class ClassNames:
    """The classes of a benchmark, found by any of the spellings that its copies use.

    Letter case, spaces, underscores, hyphens and brackets do not count; a typo of one or two letters is
    accepted.

    Args:
        title: of the benchmark, for messages.
        names: the words that questions use.
        others: further spellings -> name.
        left_out: spellings of classes that are not part of the benchmark.
    """

    def __init__(
        self,
        title: str,
        names: Iterable[str],
        others: Mapping[str, str] | None = None,
        left_out: Collection[str] = (),
    ) -> None:
        self.title = title
        self.names = tuple(names)
        self._by_spelling = {squeezed(name): name for name in self.names}
        self._by_spelling |= {squeezed(other): name for other, name in (others or {}).items()}
        self._left_out = {squeezed(name) for name in left_out}

    def __contains__(self, spelling: str) -> bool:
        key = squeezed(spelling)
        key = key.lstrip("0") if key.isdigit() else key
        return key in self._by_spelling or key in self._left_out

    def find(self, spelling: str, origin: str, note: Note) -> str | None:
        """The class; None, with a note, for a class that is left out.

        Raises:
            DataError: the benchmark has no such class.
        """
        key = squeezed(spelling)
        key = key.lstrip("0") if key.isdigit() else key
        if key in self._left_out:
            note(f"left out: images of '{spelling}', which is not one of the {len(self.names)} classes")
            return None
        near = [] if key in self._by_spelling else difflib.get_close_matches(key, self._by_spelling, 1, 0.88)
        if key not in self._by_spelling and not near:
            raise DataError(
                f"{origin}: '{spelling}' is not a class of {self.title}. If it is not part of the copy, "
                "move it away; if this is other data, name its folder as --data."
            )
        return self._by_spelling[near[0] if near else key]


def class_folders(root: Path, note: Note, classes: ClassNames, prefer: str = "") -> dict[Path, str]:
    """The folders (`root`, or up to four levels below) that contain folders of at least two classes, and the
    split of each: that of its name if there are several, "" for a single one without such a name.

    A copy inside a copy that holds the same files is left out, with a note.

    Raises:
        DataError: there are several such folders, and neither are they splits nor is exactly one in a folder
            called `prefer`; or splits have unknown names.
    """
    parents, layer = [], [root]
    for _ in range(5):
        below = [child for folder in layer for child in folders_in(folder)]
        with_class = {child.parent for child in below if child.name in classes}
        parents += [folder for folder in layer if folder in with_class]
        layer = [child for child in below if child.name not in classes][:2000]
    least = min(2, len(classes.names) or 2)
    copies = [f for f in parents if sum(child.name in classes for child in folders_in(f)) >= least]
    start = max(0, len(root.parts) - 1)
    copies = [f for f in copies if prefer in map(str.lower, f.parts[start:])] or copies
    names = {folder: split_name(folder, root, note) for folder in copies}
    read = [f for f in copies if f == root or note.splits.get(names[f].lower()) != LEFT_OUT]
    copies = _without_twins(read, note)
    if len(copies) < 2:
        return {folder: _split_alone(folder, names[folder], note) for folder in copies}
    meanings = {folder: split_called(names[folder], note.splits) for folder in copies}
    known = [folder for folder, meaning in meanings.items() if meaning]
    apart = len({names[folder] for folder in copies}) == len(copies)
    siblings = len({folder.parent for folder in copies}) == 1
    if known and apart and (siblings or len(known) == len(copies)):
        if unknown := [names[folder] for folder in copies if meanings[folder] is None]:
            raise unknown_splits(copies[0].parent, unknown)
        return {folder: str(meaning) for folder, meaning in meanings.items() if meaning != LEFT_OUT}
    leave_out = " ".join(f"{names[folder]}={LEFT_OUT}" for folder in known)
    raise DataError(
        f"{root} contains {classes.title} {len(copies)} times: {', '.join(map(str, copies))}. "
        f"Use one of them as --root{f', or leave some out: --splits {leave_out}' if known else ''}."
    )


def split_name(folder: Path, root: Path, note: Note) -> str:
    """The name of the split of a folder of class folders: that of the nearest folder up to `root` that is
    called as one ("train/images"), otherwise its own."""
    path = folder
    while path != root and path.name.lower() not in note.splits:
        path = path.parent
    return path.name if path != root or folder == root else folder.name


def _split_alone(folder: Path, name: str, note: Note) -> str:
    """The split of the only folder of class folders. Says which splits next to it have no class folders."""
    split = note.splits.get(name.lower(), "")
    for other in folders_in(folder.parent) if split else ():
        if other != folder and other.name.lower() in note.splits and (pictures := _pictures(other)):
            note(f"not read: {len(pictures)} images in {other}, which are not in class folders")
    return "" if split == LEFT_OUT else split


def _without_twins(copies: list[Path], note: Note) -> list[Path]:
    """The folders without those inside another one that has all their files too."""
    kept: list[Path] = []
    for folder in copies:  # outer ones first
        outer = next((other for other in kept if other in folder.parents), None)
        split = folder.name.lower() in note.splits
        if outer is not None and not split and _files(folder) <= _files(outer, folder):
            note(f"left out: {folder}, because {outer} has the same files")
        else:
            kept.append(folder)
    return kept


def _files(folder: Path, without: Path | None = None) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix()
        for path in files
        if without is None or without not in path.parents
    }


def from_class_folders(root: Path, note: Note, classes: ClassNames, prefer: str = "") -> Iterator[Sample]:
    """The images in class folders, at any depth below them; nothing if there are no such folders.

    Folders called train, val or test that contain the class folders are splits.
    """
    copies = class_folders(root, note, classes, prefer)
    for folder, split in copies.items():
        start = f"{split_name(folder, root, note)}/" if len(copies) > 1 else ""
        for child in folders_in(folder):
            pictures = _pictures(child)
            others = child.name not in classes and any(f.name in classes for f in folders_in(child))
            if not pictures or others:  # a folder of class folders was left out with a note
                continue
            label = classes.find(child.name, str(child), note)
            for path in pictures if label is not None else ():
                id = f"{start}{child.name}/{path.relative_to(child).as_posix()}"
                yield labelled(id, str(path), str(label), split, origin=str(path))


def _pictures(folder: Path) -> list[Path]:
    """The images at any depth below a folder.

    Raises:
        DataError: as `Scan.refuse`.
    """
    scan = Scan(folder)
    pictures = scan.below(folder)
    scan.refuse()
    return pictures


LABELS = ("label", "labels", "class", "fine_label")
"""Columns of hub copies that have the class."""


def from_copy(row: Row, note: Note, classes: ClassNames) -> Iterator[Sample]:
    """The sample of a row with an image and a class name, unless the class is left out.

    Raises:
        DataError: the label is a number without a name, or the benchmark has no such class.
    """
    spelling = column(row, *LABELS)
    if not isinstance(spelling, str):
        raise DataError(
            f"{row.origin}: the label {spelling!r} is not a name, and the order of classes differs between "
            "copies. Use a copy whose files name their classes."
        )
    label = classes.find(spelling, row.origin, note)
    if label is not None:
        yield labelled(row_id(row), column(row, "image", "img"), label, row.split, row.origin)
