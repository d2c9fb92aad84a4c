"""The part of a codebook that searches read."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

DEPTH = 64
"""The search `fused` pads widths with zeros to a multiple of this."""


@runtime_checkable
class Tables(Protocol):
    """The tables of a codebook that a search reads; `ResidualCodebook` has them."""

    @property
    def levels(self) -> Tensor:
        """float32 `[L, K, d]`."""
        ...

    @property
    def shared(self) -> bool:
        """Whether all levels share one table."""
        ...

    @property
    def half_norms(self) -> Tensor:
        """float32 `[L, K]`, `|c|²/2`."""
        ...

    def derived(self, name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        """`make(codewords)`, computed once, for codewords float32 `[1 or L, K, d]`."""
        ...
