"""A bounded cache of codes in memory, shared by all towers: about 2 kB for an image of 256 tokens."""

import threading
from collections import OrderedDict

from torch import Tensor

Key = tuple[str, str]
"""(hash of the tower's weights, hash of the image's pixels)."""


class BoundedCodes:
    """Codes and level-1 residuals of images, by tower and pixels; the least recently used are dropped.

    Args:
        limit: the most bytes of codes and residuals to keep.

    Attributes:
        hits, misses: how often `get` found an image, and how often not.
    """

    def __init__(self, limit: int = 256 * 2**20) -> None:
        self.limit = limit
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[Key, tuple[Tensor, Tensor]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """What the kept codes and residuals take."""
        return self._bytes

    def get(self, key: Key) -> tuple[Tensor, Tensor] | None:
        """(codes `[N, L]`, residual float32 `[N]`) on the CPU, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return entry

    def put(self, key: Key, codes: Tensor, residual: Tensor) -> None:
        """Keep the codes of an image. An image that alone exceeds the limit is not kept."""
        size = codes.nbytes + residual.nbytes
        if size > self.limit:
            return
        with self._lock:
            if (old := self._entries.pop(key, None)) is not None:
                self._bytes -= old[0].nbytes + old[1].nbytes
            self._entries[key] = (codes, residual)
            self._bytes += size
            while self._bytes > self.limit:
                _, (first, second) = self._entries.popitem(last=False)
                self._bytes -= first.nbytes + second.nbytes
