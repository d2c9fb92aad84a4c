"""Your own images: a folder of class folders, directly or under train/ and test/."""

from pathlib import Path

from craft.core.errors import DataError
from craft.data.images import PICTURES, refuse_unreadable, suffixes
from craft.data.sample import Raw, Sample, labelled
from craft.data.spelling import is_text, words
from craft.data.splits import LEFT_OUT, SPLIT_NAMES, SplitNames, split_called, unknown_splits

_LAYOUT = "Expected FOLDER/<class>/*.jpg, or FOLDER/train/<class>/*.jpg and FOLDER/test/<class>/*.jpg."


def read_folder(root: Path, domain: str | None = None, splits_called: SplitNames = SPLIT_NAMES) -> Raw:
    """Read a folder of class folders as labelled samples; the class word is the folder's name, "_" as space.

    Images may be at any depth below a class folder. Hidden files and files that are not images are
    ignored.

    Args:
        root: the folder.
        domain: what the images are of, in words; by default the folder's name.
        splits_called: what the names of folders next to train/ and test/ mean.

    Raises:
        DataError: no images, no class folders, other folders next to train/ and test/, two folders with the
            same class word, a name that is not UTF-8, or images that this installation cannot open.
    """
    children = folders_in(root)
    splits = [child for child in children if child.name.lower() in splits_called and folders_in(child)]
    samples: list[Sample] = []
    names: list[str] = []
    if splits:
        meanings = {child: split_called(child.name, splits_called) for child in children}
        extra = [child for child, meaning in meanings.items() if meaning is None]
        if unknown := [child.name for child in extra if folders_in(child)]:
            raise unknown_splits(root, unknown)
        if extra:
            raise DataError(
                f"{root} has other folders next to {', '.join(s.name for s in splits)}: "
                f"{', '.join(child.name for child in extra[:5])}. {_LAYOUT} Move them away, or leave them "
                f"out with --splits {extra[0].name}={LEFT_OUT}."
            )
        for child, meaning in meanings.items():
            if meaning != LEFT_OUT:
                samples += _class_folders(root, child, str(meaning), names)
    else:
        samples = _class_folders(root, root, "", names)
    refuse_unreadable(f"the data folder {root}", names)
    if not samples:
        loose = any(path.suffix.lower() in PICTURES for path in root.iterdir())
        problem = "has images but no class folders" if loose else "has no images in class folders"
        raise DataError(f"the data folder {root} {problem}. {_LAYOUT}")
    name = root.resolve().name
    return Raw(name, "classification", domain or words(name), samples, source=str(root))


def _class_folders(root: Path, parent: Path, split: str, seen: list[str]) -> list[Sample]:
    """The images that this installation can open; `seen` gets the names of all images."""
    samples: list[Sample] = []
    names: dict[str, str] = {}
    known = suffixes()
    for folder in folders_in(parent):
        label = words(folder.name)
        if label in names:
            raise DataError(
                f"the folders {names[label]} and {folder.name} in {parent} are both the class '{label}'. "
                "Merge them, or rename one."
            )
        names[label] = folder.name
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(root)
            hidden = any(part.startswith(".") for part in relative.parts)
            if hidden or path.suffix.lower() not in PICTURES or not path.is_file():
                continue
            seen.append(relative.as_posix())
            if path.suffix.lower() not in known:
                continue
            if not is_text(str(relative)):
                raise DataError(f"the file name {str(path)!a} is not UTF-8. Rename it.")
            samples.append(labelled(relative.as_posix(), str(path), label, split, origin=str(path)))
    return samples


def folders_in(parent: Path) -> list[Path]:
    """The folders directly in a folder, sorted, without hidden ones."""
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
