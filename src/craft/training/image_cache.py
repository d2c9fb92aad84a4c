"""Decoded images in memory, and processes that decode ahead, so that decoding does not hold up training."""

import multiprocessing
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from craft.core.errors import ConfigError
from craft.core.processes import follow_parent
from craft.core.progress import say
from craft.data import Sample, image_key
from craft.models.images import scaled, square_bytes
from craft.models.visual_tokenizer import VisualTokenizer

__all__ = ["ImageCache", "decoders", "image_key"]


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


class ImageCache:
    """What the vision tower takes of each image, kept in main memory until the limit is reached.

    With a frozen stem the stem's output is kept instead. It is computed one image at a time, so that its bits
    do not depend on which batch an image was first met in (a resumed run meets it in another one).

    Args:
        visual: decodes (and runs its tower's stem).
        limit: most bytes to keep; beyond them images are decoded each time.
        through_stem: keep the stem's output instead of pixels.
        pool: processes that decode what `expect` announces.
    """

    def __init__(
        self,
        visual: VisualTokenizer,
        limit: int,
        through_stem: bool = False,
        pool: Executor | None = None,
    ) -> None:
        self.visual = visual
        self.limit = limit
        self.through_stem = through_stem
        self.pool = pool
        self.bytes = 0
        self._served = False  # whether the processes have given a picture back
        self._kept: dict[Hashable, Tensor] = {}
        self._coming: dict[Hashable, Future[np.ndarray]] = {}
        self._stacked: dict[tuple[Hashable, ...], Future[Tensor]] = {}
        self._thread = ThreadPoolExecutor(1) if pool is not None and not through_stem else None

    def get(self, samples: Sequence[Sample]) -> Tensor:
        """Pixels float32 `[B, 3, S, S]`; with a frozen stem its maps `[B, C, h, w]`, in the tower's dtype.
        On the CPU both.

        Raises:
            DataError: an image cannot be read.
            ConfigError: the processes ended before they had served.
        """
        ready = self._stacked.pop(tuple(image_key(sample.image) for sample in samples), None)
        return self._stack(samples) if ready is None else ready.result()

    def expect(self, samples: Sequence[Sample]) -> None:
        """Prepare a batch that will be needed soon: the processes decode what is not in memory, and a thread
        puts the batch together. Without processes, nothing happens.

        Raises:
            ConfigError: the processes ended before they had served.
        """
        for sample in samples:
            key, pool = image_key(sample.image), self.pool
            if pool is None:
                break
            if key not in self._kept and key not in self._coming:
                size, aspect = self.visual.image_size, self.visual.aspect
                with self._processes():
                    self._coming[key] = pool.submit(square_bytes, sample.image, size, aspect)
        if self._thread is not None:
            keys = tuple(image_key(sample.image) for sample in samples)
            if keys not in self._stacked:
                self._stacked[keys] = self._thread.submit(self._stack, list(samples))

    def close(self) -> None:
        """End thread and processes; images that are still asked for are decoded here."""
        for helper in (self._thread, self.pool):
            if helper is not None:
                helper.shutdown(wait=False, cancel_futures=True)
        self._thread, self.pool, self._coming, self._stacked = None, None, {}, {}

    @contextmanager
    def _processes(self) -> Iterator[None]:
        """For a block that gives pictures to the processes, or waits for them. When they have served, their
        end is not the run's: a cluster sends SIGTERM to them too, and the step that is finished before the
        run stops goes on without them."""
        try:
            with decoders_needed():
                yield
        except ConfigError:
            if not self._served:
                raise
            if self.pool is not None:
                say("the processes that decode pictures ended; the run goes on without them")
            self.pool = None

    def _stack(self, samples: Sequence[Sample]) -> Tensor:
        stacked = torch.stack([self._one(sample) for sample in samples])
        return stacked if self.through_stem else scaled(stacked)

    def _one(self, sample: Sample) -> Tensor:
        key = image_key(sample.image)
        if key in self._kept:
            return self._kept[key]
        value = torch.from_numpy(self._bytes(sample, key))
        if self.through_stem:
            with torch.no_grad():
                tower: Any = self.visual.vision_tower
                value = tower.run_stem(scaled(value[None]).to(self.visual.device))[0].cpu()
        size = value.numel() * value.element_size()
        if self.bytes + size <= self.limit:
            self._kept[key] = value
            self.bytes += size
        return value

    def _bytes(self, sample: Sample, key: Hashable) -> np.ndarray:
        """The image as uint8 `[3, S, S]`: from the processes, or decoded here."""
        coming = self._coming.pop(key, None)
        if coming is not None:
            with self._processes():
                found = coming.result()
                self._served = True
                return found
        return square_bytes(sample.image, self.visual.image_size, self.visual.aspect)
