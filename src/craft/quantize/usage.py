"""Frequencies of codes: the code prior and usage statistics (§3.3)."""

import torch
from torch import Tensor


def code_counts(codes: Tensor, size: int) -> Tensor:
    """Count level-1 codes: int64 `[K]` from codes int64 `[..., L]` (p_dom before normalising, §3.3)."""
    return torch.bincount(codes[..., 0].reshape(-1), minlength=size)


def usage(codes: Tensor, size: int) -> list[dict[str, float]]:
    """Per level, the fraction of codewords that occur and the perplexity of their distribution.

    Args:
        codes: int64 `[..., L]`.
        size: K.

    Returns:
        One dict per level with `used` in [0, 1] and `perplexity` in [1, K].
    """
    rows = []
    for level in range(codes.shape[-1]):
        counts = torch.bincount(codes[..., level].reshape(-1), minlength=size).double()
        p = counts / counts.sum().clamp(min=1)
        entropy = -(p[p > 0] * p[p > 0].log()).sum()
        rows.append({"used": float((counts > 0).double().mean()), "perplexity": float(entropy.exp())})
    return rows
