"""A lock on a folder while a command writes to it, so that no second command writes there too.

The operating system releases the lock when the process ends, however it ends: a killed run leaves a file
behind, but no lock.
"""

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from craft.core.errors import ConfigError
from craft.core.files import LOCK, PathLike, check_writable, not_written, user_path
from craft.core.progress import say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)

_held: dict[Path, int] = {}
"""The locks of this process, and the thread that has each."""


@contextmanager
def locked(folder: PathLike | None, *, beside: bool = False) -> Iterator[None]:
    """Within the block, no other process writes to `folder`, which is created if it is missing.

    The thread that has the lock may take it again. If the file system has no locks, CRAFT says so and
    continues without one.

    Args:
        folder: the folder; None locks nothing.
        beside: the lock's file is next to `folder` and not in it, because `folder` is a file, or will be
            replaced as a whole.

    Raises:
        ConfigError: another process writes to the folder, or it cannot be written to.
    """
    path = None if folder is None else _lock_file(Path(folder), beside)
    if folder is None or path is None or _held.get(path) == threading.get_ident():
        yield
        return
    check_writable(folder if beside and not Path(folder).is_dir() else path)
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path, Path(folder))
    except OSError as error:
        raise not_written(Path(folder), error) from error
    _held[path] = threading.get_ident()
    try:
        yield
    finally:
        del _held[path]
        with suppress(OSError):  # the user may have deleted the folder
            path.unlink()
        os.close(descriptor)
        with suppress(OSError):  # not empty, as a rule
            for parent in missing:
                parent.rmdir()


def check_unlocked(folder: PathLike) -> None:
    """Check that no other process writes to a folder. Writes nothing.

    Raises:
        ConfigError: another process does.
    """
    path = _lock_file(Path(folder), beside=False)
    if path in _held or not os.path.isfile(path):
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR)
        try:
            _take(descriptor, path, Path(folder))
        finally:
            os.close(descriptor)


def _lock_file(folder: Path, beside: bool) -> Path:
    path = Path(os.path.realpath(user_path(folder)))
    return path.with_name(f".{path.name}{LOCK}") if beside else path / LOCK


def _acquire(path: Path, folder: Path) -> int:
    """The descriptor of the lock's file, which is locked and names this process."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if reason := _take(descriptor, path, folder):
                say(
                    f"note: CRAFT cannot lock {folder} ({reason}); do not start a second command that writes "
                    "there"
                )
                return descriptor
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the process that had the lock deleted the file meanwhile


def _take(descriptor: int, path: Path, folder: Path) -> str | None:
    """Lock an open file; returns the reason if the system cannot lock it.

    Raises:
        ConfigError: another process has the lock.
    """
    if fcntl is None:
        return "this system has none"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            raise _in_use(path, folder) from error
        return error.strerror or str(error)
    return None


def _in_use(path: Path, folder: Path) -> ConfigError:
    who = ""
    with suppress(OSError, UnicodeDecodeError):
        who = path.read_text(encoding="utf-8").strip()
    return ConfigError(
        f"{folder} is in use: {who or 'another process'} is writing to it. Wait until it ends, stop it, or "
        "choose another folder."
    )
