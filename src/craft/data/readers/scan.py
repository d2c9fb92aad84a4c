"""What is in a folder of images: images, what is passed over by kind, and what cannot be read."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from craft.core.errors import DataError
from craft.data.images import PICTURES, link_fix, refuse_unreadable, suffixes
from craft.data.signatures import POINTERS

SYSTEM = frozenset(
    {"@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "__macosx", "__pycache__"}
    | {"$recycle.bin", "system volume information", "lost+found"}
)
"""Folders (lower case) that systems add: thumbnails of Synology, macOS' half of a zip, recycle bins."""

SHOWN = 3
"""How many files a message names."""

_POINTER_MOST = 1024
"""Pointers of Git LFS and git-annex are smaller than this many bytes."""


class Scan:
    """Reads folders of one data set and counts everything in them.

    The number of files below `root` is the number of images plus the sum of `passed`, once `folders` or
    `below` has been called for every folder.

    Args:
        root: the folder of the data set.

    Attributes:
        passed: how many files were passed over, by kind.
        names: the images, as paths relative to `root` with "/", whether or not CRAFT opens their format.
        broken: links that lead nowhere.
        locked: folders that may not be read.
        pointers: files of Git LFS or git-annex that stand for images, with their first bytes.
        empty: folders without images at any depth.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.passed: Counter[str] = Counter()
        self.names: list[str] = []
        self.broken: list[Path] = []
        self.locked: list[Path] = []
        self.pointers: dict[Path, bytes] = {}
        self.empty: list[Path] = []
        self._classes: dict[str, Path] = {}
        self._above = {os.path.realpath(path) for path in (root, *root.absolute().parents)}

    def folders(self, parent: Path) -> list[Path]:
        """The folders directly in a folder, sorted. Files next to them are passed over."""
        folders = []
        for entry in self._entries(parent):
            if entry.is_dir():
                folders.append(Path(entry.path))
            else:
                self._pass(entry, " next to the folders")
        return folders

    def below(self, folder: Path) -> list[Path]:
        """The images at any depth below a folder, sorted, through links to folders too (each folder once).

        Raises:
            DataError: a folder cannot be read, or was read below a folder of another name, through a link.
        """
        real = os.path.realpath(folder)
        self._claim(real, folder)
        pictures = sorted(self._walk(folder, {*self._above, real}, folder))
        self.names += [path.relative_to(self.root).as_posix() for path in pictures]
        known = suffixes()
        if not pictures:
            self.empty.append(folder)
        return [path for path in pictures if path.suffix.lower() in known]

    def _claim(self, real: str, top: Path) -> None:
        """Note which class folder a folder is read for."""
        other = self._classes.setdefault(real, top)
        if other.name != top.name:
            raise DataError(
                f"the class folders {other} and {top} both lead to {real}, so its images would be in two "
                "classes. Remove the link from one of them."
            )

    def _walk(self, folder: Path, visited: set[str], top: Path) -> Iterator[Path]:
        for entry in self._entries(folder):
            path = Path(entry.path)
            if not entry.is_dir():
                if path.suffix.lower() not in PICTURES or not entry.is_file():
                    self._pass(entry)
                    continue
                if entry.stat().st_size < _POINTER_MOST and (start := _pointer(path)):
                    self.pointers[path] = start
                yield path
            elif (real := os.path.realpath(path)) in visited:
                self.passed["links to a folder that is read already"] += 1
            else:
                visited.add(real)
                self._claim(real, top)
                yield from self._walk(path, visited, top)

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """What is in a folder, sorted, without what is hidden, the system's, broken or locked."""
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
            if not os.access(folder, os.X_OK):  # the names can be read, the files cannot
                raise PermissionError
        except PermissionError:
            self.locked.append(folder)
            return []
        except OSError as error:
            raise DataError(f"the folder {folder} cannot be read: {error.strerror or error}.") from error
        usable = []
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(".icloud"):
                self.passed["not downloaded from iCloud"] += 1
            elif entry.name.startswith("."):
                self.passed["hidden"] += _count(entry)
            elif entry.name.lower() in SYSTEM and entry.is_dir():
                self.passed[f"in {entry.name}"] += _count(entry)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                self._broken(entry)
            else:
                usable.append(entry)
        return usable

    def _broken(self, entry: os.DirEntry[str]) -> None:
        ending = os.path.splitext(entry.name)[1].lower()
        if ending in PICTURES or not ending[1:].isalpha():  # an image, or perhaps a class folder ("v1.5")
            self.broken.append(Path(entry.path))
        else:
            self.passed[f"{ending} (links that lead nowhere)"] += 1

    def _pass(self, entry: os.DirEntry[str], where: str = "") -> None:
        ending = os.path.splitext(entry.name)[1].lower()
        kind = f"images{where}" if ending in PICTURES and where else ending or "without an ending"
        self.passed[kind if entry.is_file() else "neither files nor folders"] += 1

    def refuse(self) -> None:
        """Refuse what would otherwise be missing in silence.

        Raises:
            DataError: folders that may not be read, links that lead nowhere, Git LFS pointers, or images that
                CRAFT cannot open. The message counts and names them, with the way out.
        """
        where = f"in {self.root}"
        if self.locked:
            count = len(self.locked)
            raise DataError(
                f"{count} {'folder' if count == 1 else 'folders'} {where} may not be read: "
                f"{self._listed(self.locked)}. Change the permissions (`chmod -R u+rX {self.root}`), or "
                "remove them from the data."
            )
        if self.broken:
            total = len(self.names) + len(self.broken)
            folders = Counter(self._short(link.parent) for link in self.broken)
            counts = ", ".join(f"{count} in {name}" for name, count in folders.most_common(5))
            raise DataError(
                f"{len(self.broken)} of {total} images {where} are links that lead nowhere ({counts}): "
                f"{self._listed(self.broken)}, which names {os.readlink(self.broken[0])}. "
                f"{link_fix(self.broken)}."
            )
        if self.pointers:
            kind, fix = POINTERS[next(iter(self.pointers.values()))]
            raise DataError(
                f"{len(self.pointers)} of {len(self.names)} images {where} are {kind}s, not the images "
                f"themselves: {self._listed(list(self.pointers))}. {fix} there."
            )
        refuse_unreadable(f"the data folder {self.root}", self.names)
        known = suffixes()
        unread = sum(os.path.splitext(name)[1].lower() not in known for name in self.names)
        if unread:  # `refuse_unreadable` lets these pass
            self.passed["images that also exist in a format that is read"] = unread

    def notes(self) -> list[str]:
        """Sentences about what was passed over and what is empty."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.passed.most_common() if count)
        notes = [f"passed over: {kinds}"] if kinds else []
        return notes + ([f"folders without images: {self._listed(self.empty)}"] if self.empty else [])

    def _short(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path != self.root else "the folder itself"

    def _listed(self, paths: Sequence[Path]) -> str:
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        return ", ".join(map(self._short, paths[:SHOWN])) + more


def folders_in(parent: Path) -> list[Path]:
    """The folders directly in a folder, sorted, without hidden ones and those that systems add.

    Raises:
        DataError: the folder may not be read, or has links that lead nowhere.
    """
    scan = Scan(parent)
    folders = scan.folders(parent)
    scan.refuse()
    return folders


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a folder that systems add."""
    return name.startswith(".") or name.lower() in SYSTEM


def _count(entry: os.DirEntry[str]) -> int:
    """How many files a hidden or system file or folder stands for."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


def _pointer(path: Path) -> bytes:
    """The first bytes of a pointer; empty for every other file."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""  # opening the image says why
    return next((start for start in POINTERS if content.startswith(start)), b"")
