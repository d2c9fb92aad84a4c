"""Class names in the spellings that copies of a benchmark use, and the two common layouts of class data."""

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from craft.core.errors import DataError
from craft.data.benchmarks.base import Note, column, row_id
from craft.data.images import SUFFIXES
from craft.data.readers.rows import Row
from craft.data.readers.scan import folders_in
from craft.data.sample import Sample, labelled
from craft.data.spelling import squeezed


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
        return key in self._by_spelling or key in self._left_out

    def find(self, spelling: str, origin: str, note: Note) -> str | None:
        """The class; None, with a note, for a class that is left out.

        Raises:
            DataError: the benchmark has no such class.
        """
        key = squeezed(spelling)
        if key in self._left_out:
            note(f"left out: images of '{spelling}', which is not one of the {len(self.names)} classes")
            return None
        near = [] if key in self._by_spelling else difflib.get_close_matches(key, self._by_spelling, 1, 0.88)
        if key not in self._by_spelling and not near:
            raise DataError(f"{origin}: '{spelling}' is not a class of {self.title}.")
        return self._by_spelling[near[0] if near else key]


def class_folders(root: Path, classes: ClassNames, prefer: str) -> Path | None:
    """The folder (`root`, or up to three levels below) that contains folders of at least two classes.

    Raises:
        DataError: there are several such folders, and not exactly one is called `prefer`.
    """
    parents, layer = [], [root]
    for _ in range(4):
        below = [child for folder in layer for child in folders_in(folder)]
        with_class = {child.parent for child in below if child.name in classes}
        parents += [folder for folder in layer if folder in with_class]
        layer = [child for child in below if child.name not in classes]
    least = min(2, len(classes.names))
    copies = [f for f in parents if sum(child.name in classes for child in folders_in(f)) >= least]
    preferred = [folder for folder in copies if folder.name == prefer] if len(copies) > 1 else copies
    if len(copies) > 1 and len(preferred) != 1:
        raise DataError(
            f"{root} contains {classes.title} {len(copies)} times: {', '.join(map(str, copies))}. "
            "Use one of them as --root."
        )
    return preferred[0] if preferred else None


def from_class_folders(root: Path, note: Note, classes: ClassNames, prefer: str) -> Iterator[Sample]:
    """Images directly in class folders, without a split; nothing if there are no such folders."""
    folder = class_folders(root, classes, prefer)
    for child in folders_in(folder) if folder is not None else ():
        label = classes.find(child.name, str(child), note)
        if label is None:
            continue
        for path in sorted(child.iterdir()):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):  # macOS' "._x.jpg"
                yield labelled(f"{child.name}/{path.name}", str(path), label, origin=str(path))


def from_copy(row: Row, note: Note, classes: ClassNames | Callable[[str], str]) -> Iterator[Sample]:
    """The sample of a row with an image and a class name, unless the class is left out.

    Args:
        row: the row.
        note: takes notes.
        classes: the classes, or a function from the name in the copy to the class.

    Raises:
        DataError: the label is a number without a name, or the benchmark has no such class.
    """
    spelling = column(row, "label", "labels", "class", "fine_label")
    if not isinstance(spelling, str):
        raise DataError(
            f"{row.origin}: the label {spelling!r} is not a name, and the order of classes differs between "
            "copies. Use a copy whose files name their classes."
        )
    known = isinstance(classes, ClassNames)
    label = classes.find(spelling, row.origin, note) if known else classes(spelling)
    if label is not None:
        yield labelled(row_id(row), column(row, "image", "img"), label, row.split, row.origin)
