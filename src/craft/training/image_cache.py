"""Decoded images in memory, and processes that decode in advance, so that training does not wait for them."""

import multiprocessing
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from craft.core.errors import ConfigError
from craft.core.processes import follow_parent
from craft.core.progress import say
from craft.data import Sample, image_key
from craft.models.images import scaled, square_bytes
from craft.models.vision_tower import HybridTower
from craft.models.visual_tokenizer import VisualTokenizer

__all__ = ["ImageCache", "decoders", "image_key"]


def decoders(workers: int) -> Executor:
    """Processes that decode images (`square_bytes`).

    They are not forked, because torch's threads do not survive a fork. A script that uses them therefore
    needs `if __name__ == "__main__":`. They ignore Ctrl-C, which a terminal also sends to them, because the
    training process still needs them to finish its step. They end with the training process, however it ends.
    """
    kinds = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["craft.models.images", "craft.core.processes"])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=follow_parent, initargs=(False,))


@contextmanager
def decoders_needed() -> Iterator[None]:
    """A context for code that sends images to the processes of `decoders`, or waits for them.

    Raises:
        ConfigError: the processes ended.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise ConfigError(
            "The processes that decode images ended. A script must call CRAFT inside "
            '`if __name__ == "__main__":`; or set workers=0, which decodes without them.'
        ) from error


class ImageCache:
    """The vision tower's input for each image, cached in main memory up to a limit.

    With `through_stem` the cache has the output of a frozen stem instead of pixels. CRAFT computes it for one
    image at a time, so that its bits do not depend on the batch in which an image first occurs (in a resumed
    run that may be another one).

    Args:
        visual: the visual tokenizer, for the size of images and the stem of its tower.
        limit: the largest number of bytes in the cache; beyond it images are decoded each time.
        through_stem: cache the stem's output instead of pixels.
        pool: processes that decode the images announced by `expect`.
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
        self._pool_worked = False  # whether the processes have decoded an image
        self._cached: dict[Hashable, Tensor] = {}
        self._decoding: dict[Hashable, Future[np.ndarray]] = {}
        self._stacking: dict[tuple[Hashable, ...], Future[Tensor]] = {}
        self._thread = ThreadPoolExecutor(1) if pool is not None and not through_stem else None

    def get(self, samples: Sequence[Sample]) -> Tensor:
        """Pixels float32 `[B, 3, S, S]`, or with `through_stem` the stem's maps `[B, C, h, w]` in the tower's
        dtype; both on the CPU.

        Raises:
            DataError: an image cannot be read.
            ConfigError: the processes ended before they decoded anything.
        """
        ready = self._stacking.pop(tuple(image_key(sample.image) for sample in samples), None)
        return self._stack(samples) if ready is None else ready.result()

    def expect(self, samples: Sequence[Sample]) -> None:
        """Prepare a batch that will be needed soon; without processes, this does nothing.

        The processes decode the images that are not in memory, and a thread stacks them.

        Raises:
            ConfigError: the processes ended before they decoded anything.
        """
        for sample in samples:
            key, pool = image_key(sample.image), self.pool
            if pool is None:
                break
            if key not in self._cached and key not in self._decoding:
                size, aspect = self.visual.image_size, self.visual.aspect
                with self._processes():
                    self._decoding[key] = pool.submit(square_bytes, sample.image, size, aspect)
        if self._thread is not None:
            keys = tuple(image_key(sample.image) for sample in samples)
            if keys not in self._stacking:
                self._stacking[keys] = self._thread.submit(self._stack, list(samples))

    def forget(self) -> None:
        """Drop the announced batches, because micro-batches will be others."""
        self._stacking.clear()

    def close(self) -> None:
        """End thread and processes; `get` then decodes images in this process."""
        for executor in (self._thread, self.pool):
            if executor is not None:
                executor.shutdown(wait=False, cancel_futures=True)
        self._thread, self.pool, self._decoding, self._stacking = None, None, {}, {}

    @contextmanager
    def _processes(self) -> Iterator[None]:
        """A context for code that sends images to the processes, or waits for them.

        If they end after they have decoded something, the run continues without them: a cluster also sends
        SIGTERM to them, and the run finishes its step before it stops.
        """
        try:
            with decoders_needed():
                yield
        except ConfigError:
            if not self._pool_worked:
                raise
            if self.pool is not None:
                say("the processes that decode images ended; the run continues without them")
            self.pool = None

    def _stack(self, samples: Sequence[Sample]) -> Tensor:
        stacked = torch.stack([self._one(sample) for sample in samples])
        return stacked if self.through_stem else scaled(stacked)

    def _one(self, sample: Sample) -> Tensor:
        key = image_key(sample.image)
        if key in self._cached:
            return self._cached[key]
        value = torch.from_numpy(self._bytes(sample, key))
        if self.through_stem:
            with torch.no_grad():
                tower = self.visual.vision_tower
                assert isinstance(tower, HybridTower)
                value = tower.run_stem(scaled(value[None]).to(self.visual.device))[0].cpu()
        size = value.numel() * value.element_size()
        if self.bytes + size <= self.limit:
            self._cached[key] = value
            self.bytes += size
        return value

    def _bytes(self, sample: Sample, key: Hashable) -> np.ndarray:
        """The image as uint8 `[3, S, S]`, from the processes or decoded in this one."""
        future = self._decoding.pop(key, None)
        if future is not None:
            with self._processes():
                pixels = future.result()
                self._pool_worked = True
                return pixels
        return square_bytes(sample.image, self.visual.image_size, self.visual.aspect)
