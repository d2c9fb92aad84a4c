"""What stands in the codebook's place in a continuous LVLM: features go to the projector as they are."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from craft.core.errors import CraftError
from craft.core.files import hash_rounded
from craft.quantize.codebook import Quantized

TOWER = "tower:"
"""How the fingerprint of a continuous LVLM begins, where that of a codebook is a bare hash."""


class Continuous(nn.Module):
    """A codebook of no levels: z̃ = z, and there are no codes. Same interface as `ResidualCodebook`.

    A backbone that was aligned on features reads those of one vision tower, as another one reads the
    codewords of one codebook. So the fingerprint is that of this base tower, and stays when the tower is
    tuned.

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
        """Features as they are: `quantized` float32 `[..., d]`, `codes` int64 `[..., 0]`, residual 0.

        Args:
            z: `[..., d]`, any float dtype. No gradient flows: see `straight_through`.
            partial_sums: return them too; there are none, `[..., 0, d]`.
            search: of no effect: there is nothing to search.
        """
        shape, exact = z.shape[:-1], z.detach().float()
        return Quantized(
            codes=torch.zeros(*shape, 0, dtype=torch.long, device=z.device),
            quantized=exact,
            residual=exact.new_zeros(shape),
            partial_sums=exact.new_zeros(*shape, 0, self.dim) if partial_sums else None,
        )

    def lookup(self, codes: Tensor) -> Tensor:
        """There is nothing to look up.

        Raises:
            CraftError: always.
        """
        raise CraftError(
            "A continuous LVLM has no codebook, so no codewords can be looked up by their codes."
        )

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        return f"continuous, d={self.dim}"


def tower_fingerprint(state: Mapping[str, Tensor]) -> str:
    """ "tower:" and `hash_rounded` of a vision tower's weights."""
    return TOWER + hash_rounded(state)
