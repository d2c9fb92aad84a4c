"""Commitment loss (Eq. 3): keeps features near their codewords."""

from typing import Literal

from torch import Tensor

Reduction = Literal["sum", "mean"]


def _reduce_width(squared: Tensor, reduction: Reduction) -> Tensor:
    return squared.sum(-1) if reduction == "sum" else squared.mean(-1)


def commitment(features: Tensor, quantized: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Squared distance of every feature to its quantised version, averaged over tokens; float32 scalar.

    No gradient flows into `quantized`, even if it passes one by straight-through.

    Args:
        features: z `[B, N, d]`.
        quantized: z̃ `[B, N, d]`, the sum of the chosen codewords.
        reduction: over the width d: "sum" is the squared norm of Eq. 3 as printed; "mean" is 1/d of it, as in
            the code of VILA-U. The weight in Eq. 5 depends on it: the two differ by a factor d.

    Source: paper Eq. 3.
    """
    squared = (features.float() - quantized.detach().float()).square()  # Eq. 3: ||E(x) - sg[q(E(x))]||²
    return _reduce_width(squared, reduction).mean()


def commitment_cumulative(features: Tensor, partial_sums: Tensor, reduction: Reduction = "mean") -> Tensor:
    """VILA-U's form: the same distance to the codeword sum after each level, averaged over levels.

    Args:
        features: z `[B, N, d]`.
        partial_sums: cumulative codeword sums `[B, N, L, d]`; `[..., L - 1, :]` is z̃. No gradient flows in.
        reduction: over the width d, as in `commitment`.

    Source: residual quantisation as in VILA-U and RQ-VAE; the paper's Eq. 3 is the last level.
    """
    squared = (features.float().unsqueeze(-2) - partial_sums.detach().float()).square()
    return _reduce_width(squared, reduction).mean()
