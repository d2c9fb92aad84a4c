"""Files and folders that are either whole or absent."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from craft.core.errors import CheckpointError, ConfigError

PathLike = str | os.PathLike[str]


LOCK = ".craft.lock"
"""The name of the file in a folder that `craft.core.lock` locks."""

_LEFTOVER = re.compile(r"\.(.+)\.\d+-[0-9a-f]{8}\.(tmp|old)")


def _sibling(path: Path, suffix: str) -> Path:
    """An unused name in the folder of `path`; unlike `tempfile`, files there get ordinary permissions."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.{suffix}")


def is_leftover(path: Path) -> bool:
    """Whether a file or folder was left by a killed process: unfinished, or to lock the folder."""
    return path.name == LOCK or _LEFTOVER.fullmatch(path.name) is not None


def clear_leftovers(folder: Path) -> None:
    """Delete what a killed process left unfinished in `folder`. No other process may be writing there.

    A folder that it had renamed gets its name back, unless the name is in use.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        match = _LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        name, kind = match.groups()
        if kind == "old" and not (folder / name).exists():
            os.replace(path, folder / name)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def user_path(path: PathLike) -> Path:
    """A path that a user wrote, with "~" for the home folder.

    `Path.expanduser` raises a RuntimeError for an unknown user; here the path stays the same.
    """
    return Path(os.path.expanduser(path))


def member(folder: Path, name: object, source: PathLike, nested: bool = False) -> Path:
    """The path of a file that a manifest or an index names, which must be inside the manifest's folder.

    Args:
        folder: the folder that the name is relative to.
        name: the name as it was read.
        source: the manifest or index, for the message.
        nested: accept folders in the name ("images/a.png"); otherwise, the name is that of a file.

    Raises:
        CheckpointError: the name is no text, is empty, absolute, has a folder, "..", a backslash or a NUL in
            it, or it is a link that leads out of the folder.
    """
    parts = name.split("/") if isinstance(name, str) else []
    plain = all(part not in ("", ".", "..") and not set(part) & {"\\", "\0"} for part in parts)
    if not parts or not plain or (len(parts) > 1 and not nested):
        kind = "a path inside its folder" if nested else "the plain name of a file in its folder"
        raise CheckpointError(f"{source} names {name!r}, which is not {kind}; CRAFT reads no other files.")
    path = folder.joinpath(*parts)
    if not is_inside(path, folder):
        raise CheckpointError(
            f"{path}, which {source} names, is a link to a file outside its folder, which CRAFT does not "
            "follow; copy the file itself there (cp -L)."
        )
    return path


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is inside a folder, after links are followed. Files of the hub's cache are inside too:
    its folders `snapshots/REVISION` consist of links to `blobs`."""
    target, root = path.resolve(), folder.resolve()
    stores = [parent.parent / "blobs" for parent in (root, *root.parents) if parent.name == "snapshots"]
    return any(target.is_relative_to(allowed) for allowed in (root, *stores))


def check_writable(path: PathLike) -> None:
    """Check that a file can be written, before the work that produces it. Nothing is written.

    Raises:
        ConfigError: `path` is a folder, one of its parents is a file, a name is too long, or writing is not
            allowed.
    """
    path = Path(path)
    existing = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder, so no file can be written there; choose another name")
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise not_written(path, error) from error
    if not existing.is_dir():
        raise ConfigError(f"cannot write {path}: {existing} is a file; choose another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write {path}: writing in {existing} is not allowed; choose another path")


def not_written(path: Path, error: OSError) -> ConfigError:
    """The error for a file or folder that the system does not write, with the way out."""
    full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    fix = "free some space, or choose another path" if full else "choose another path"
    return ConfigError(f"cannot write {path}: {error.strerror or error}; {fix}")


def atomic_write_bytes(path: PathLike, data: bytes) -> None:
    """Write `data` to `path` so that readers see either the old file or the new one, never a part of it.

    Missing parent folders are created.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = Path(path)
    temporary = _sibling(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        with suppress(OSError):  # renamed already, if all went well
            temporary.unlink()


def atomic_write_text(path: PathLike, text: str) -> None:
    """Write `text` as UTF-8, atomically like `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def append_text(path: PathLike, text: str) -> None:
    """Add UTF-8 text to the end of a file in one write; it is on disk before this returns.

    Missing parent folders are created, and so is the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise not_written(path, error) from error


def write_json(path: PathLike, value: object) -> None:
    """Write `value` as indented JSON, atomically. Keys keep their order; NaN and infinity are refused.

    Raises:
        ValueError: `value` contains NaN or infinity.
        ConfigError: the file cannot be written.
    """
    text = json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False, allow_nan=False)
    atomic_write_text(path, text + "\n")


def read_json(path: PathLike) -> Any:
    """Read one JSON file.

    Raises:
        CheckpointError: the file is missing, unreadable or not JSON (the message names file and line).
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; check the path, or copy the folder again") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); restore the file or write it again"
        ) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text, so not JSON; restore the file") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); restore the file") from error


@contextmanager
def atomic_directory(path: PathLike) -> Iterator[Path]:
    """Build a folder under a temporary name; it gets the name `path` if the block ends without an error.

    It replaces an existing folder completely; after an error the existing folder is unchanged. If `path` is a
    link, its target is replaced.

    Raises:
        ConfigError: the place cannot be written to, or `path` is a file.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file, so no folder can be written there; choose another name")
    temporary, old = _sibling(path, "tmp"), _sibling(path, "old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise not_written(path, error) from error
    try:
        yield temporary
        try:
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        except BaseException:  # also on Ctrl-C between the two
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Delete a folder so that readers never see a part of it.

    If the process is killed, `clear_leftovers` completes the deletion.
    """
    renamed = _sibling(path, "tmp")
    os.replace(path, renamed)
    shutil.rmtree(renamed, ignore_errors=True)


def sha256_file(path: PathLike) -> str:
    """SHA-256 (hex) of a file's bytes.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; check the path") from error
