"""The replacement of the codebook in a continuous LVLM: features go to the projector unquantised."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from craft.core.errors import CraftError
from craft.core.tensors import hash_rounded
from craft.quantize.codebook import Quantized

TOWER = "tower:"
"""Prefix of the fingerprint of a continuous LVLM; that of a codebook has none."""


class Continuous(nn.Module):
    """A codebook without levels: z̃ = z, and there are no codes. It has the interface of `ResidualCodebook`.

    A backbone that was aligned on features reads those of one vision tower, like another one reads the
    codewords of one codebook. The fingerprint is therefore that of the base tower; tuning does not change it.

    Args:
        dim: d, the width of a feature.
        fingerprint: of the base tower (`tower_fingerprint`).

    Source: the continuous LVLMs of Table 1 (VILA); ours.
    """

    codewords: Tensor
    num_levels, size, shared = 0, 0, False

    def __init__(self, dim: int, fingerprint: str) -> None:
        super().__init__()
        self.dim = dim
        self.fingerprint = fingerprint
        self.register_buffer("codewords", torch.zeros(0, 0, dim), persistent=False)

    @property
    def levels(self) -> Tensor:
        """float32 `[0, 0, d]`."""
        return self.codewords

    @torch.no_grad()
    def quantize(self, z: Tensor, partial_sums: bool = False, search: str = "exact") -> Quantized:
        """The features themselves: `quantized` float32 `[..., d]`, `codes` int64 `[..., 0]`, residual 0.

        Args:
            z: `[..., d]`, any float dtype. No gradient flows: see `straight_through`.
            partial_sums: also return the empty partial sums `[..., 0, d]`.
            search: has no effect.
        """
        shape, exact = z.shape[:-1], z.detach().float()
        return Quantized(
            codes=torch.zeros(*shape, 0, dtype=torch.long, device=z.device),
            quantized=exact,
            residual=exact.new_zeros(shape),
            partial_sums=exact.new_zeros(*shape, 0, self.dim) if partial_sums else None,
        )

    def lookup(self, codes: Tensor) -> Tensor:
        """Refused, because there are no codewords.

        Raises:
            CraftError: always.
        """
        raise CraftError(
            "A continuous LVLM has no codebook, so codewords cannot be looked up by their codes; use a "
            "discrete LVLM, such as craft-tiny/qwen2."
        )

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        return f"continuous, d={self.dim}"


def tower_fingerprint(state: Mapping[str, Tensor]) -> str:
    """The fingerprint of a vision tower: "tower:" and `hash_rounded` of its weights."""
    return TOWER + hash_rounded(state)
