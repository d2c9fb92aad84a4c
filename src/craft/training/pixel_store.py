"""Decoded pictures on disk: each is decoded and resized once, then read as mapped memory."""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from craft.core.errors import ConfigError
from craft.core.files import user_path
from craft.core.processes import follow_parent
from craft.core.progress import say, track
from craft.data import ImageSource, image_key
from craft.data.images import Packed
from craft.models.images import square_bytes


def decoders(workers: int) -> Executor:
    """Processes that decode pictures (`square_bytes`). They are started afresh, not forked: torch's threads
    do not survive a fork. A script that uses them needs `if __name__ == "__main__":`. Ctrl-C, which a
    terminal sends to them too, is for the process that trains: it finishes its step with them. They end with
    it, however it ends."""
    kinds = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["craft.models.images", "craft.core.processes"])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=follow_parent, initargs=(False,))


@contextmanager
def decoders_needed() -> Iterator[None]:
    """For a block that gives pictures to the processes of `decoders`, or waits for them.

    Raises:
        ConfigError: the processes ended.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise ConfigError(
            "The processes that decode pictures ended. A script must call CRAFT below "
            '`if __name__ == "__main__":`; or set workers=0, which decodes without them.'
        ) from error


class PixelStore:
    """A folder with the bytes of pictures as the tower takes them, uint8 `[3, S, S]` each.

    Two files per size and aspect: the pictures one after the other, and a line for each that says which it
    is. Rows are only ever added, so that an interrupted filling goes on where it stopped, and by one process
    at a time, which holds the lock beside them. A file that changed since (size, time) counts as another
    picture.

    Args:
        folder: made when needed; may serve several runs, also at once.
        size, aspect: of the tower's input (see `craft.models.images.pixels`).

    Raises:
        ConfigError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, size: int, aspect: str = "resize") -> None:
        self.size, self.aspect = size, aspect
        self.path = user_path(folder) / f"pixels-{size}-{aspect}.u8"
        self.names = self.path.with_suffix(".txt")
        self._lock = FileLock(self.path.with_suffix(".lock"))  # let go when its process dies, however it does
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            self.names.touch()
        except OSError as error:
            raise ConfigError(
                f"cannot write {self.path}: {error.strerror or error}; choose another place"
            ) from error
        self._each = 3 * size * size
        self._open()

    def _open(self) -> None:
        """Read the names and map the pictures, as far as both are whole: one may just be written."""
        lines = self.names.read_bytes().split(b"\n")[:-1]
        count = min(len(lines), self.path.stat().st_size // self._each)
        self._rows = {line.decode("utf-8"): row for row, line in enumerate(lines[:count])}
        shape = (count, 3, self.size, self.size)
        self._pixels = (
            np.memmap(self.path, np.uint8, "r", shape=shape) if count else np.zeros(shape, np.uint8)
        )

    def _mend(self) -> None:
        """Take off what an interruption left half done; the lock is held."""
        self._open()
        lines = self.names.read_bytes().split(b"\n")[: len(self._pixels)]
        os.truncate(self.names, sum(len(line) + 1 for line in lines))
        os.truncate(self.path, len(lines) * self._each)

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, source: ImageSource) -> np.ndarray | None:
        """The picture's bytes, uint8 `[3, S, S]`, mapped; None where it is not in the store."""
        name = _name(source)
        row = None if name is None else self._rows.get(name)
        return None if row is None else self._pixels[row]

    def fill(self, sources: Sequence[ImageSource], workers: int = 0, progress: bool = True) -> int:
        """Decode what is not there yet; return how many pictures that were.

        Arrays, PIL images and bytes in memory are passed over: nothing says which they are in the next run.
        While another process fills the store, this one waits, and then decodes what that one did not.

        Raises:
            DataError: a picture cannot be read; those before it are kept.
            ConfigError: the processes ended.
        """
        named = {name: source for source in sources if (name := _name(source))}
        if named.keys() <= self._rows.keys():
            return 0
        with self._writing():
            left = {name: source for name, source in named.items() if name not in self._rows}
            if not left:
                return 0  # that other process was after the same ones
            found = _decoded(list(left.values()), self.size, self.aspect, workers)
            shown = track(found, "decoding pictures", len(left)) if progress else found
            with open(self.path, "ab") as pictures, open(self.names, "ab") as names:
                for name, picture in zip(left, shown, strict=True):
                    pictures.write(picture.tobytes())
                    pictures.flush()
                    names.write(f"{name}\n".encode())
                    names.flush()
            self._open()
        return len(left)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A block that alone writes: the store as others left it, whole."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another run, which fills {self.path}")
            self._lock.acquire()
        try:
            self._mend()
            yield
        finally:
            self._lock.release()


def _name(source: ImageSource) -> str | None:
    """A line that is the same as long as the picture is, and another when its file changed."""
    if isinstance(source, Packed):
        file, place = source.path, str(source)
    elif isinstance(source, str | os.PathLike):
        file = place = os.path.abspath(str(image_key(source)))
    else:
        return None
    try:
        state = os.stat(file)
    except OSError:
        return None
    return f"{place} {state.st_size} {state.st_mtime_ns}".replace("\n", " ")


def _decoded(sources: Sequence[Any], size: int, aspect: str, workers: int) -> Iterator[np.ndarray]:
    if workers == 0:
        yield from (square_bytes(source, size, aspect) for source in sources)
        return
    pool = decoders(workers)
    waiting: deque[Future[np.ndarray]] = deque()
    try:
        with decoders_needed():
            for source in sources:
                waiting.append(pool.submit(square_bytes, source, size, aspect))
                if len(waiting) > 8 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
