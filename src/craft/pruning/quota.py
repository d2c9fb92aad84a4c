"""Rarity-weighted quotas per code, solved for every budget at once (§3.3).

The paper keeps m_k = ⌈n_k ρ_k^γ⌉ tokens of code k. With ρ_k = 1/p_k ≥ 1 this would not prune, so ρ is divided
by a reference above its maximum: ρ_ref = e^δ / min p, δ > 0. With lr_k = δ + ln p_k - ln min p > 0,

    m_k(γ) = ⌈n_k e^(-γ lr_k)⌉

falls from n_k at γ = 0 to 1, faster for codes that are more frequent in the prior. The token with number j
(from 0) within its code is kept as long as m_k(γ) > j. For an integer j, ⌈x⌉ > j is equivalent to x > j, so

    kept  ⇔  γ < γ* = ln(n_k / j) / lr_k        (γ* = ∞ for j = 0)

and "solve γ for a budget, then keep m_k of each code" is "keep the tokens with the largest γ*". One order
serves every budget, and the kept sets of two budgets are nested.

The result has the same bits on every device: logarithms come from tables computed on the CPU, distances are
integers (thousandths), and the rest are comparisons and single IEEE operations.
"""

from functools import lru_cache

import torch
from torch import Tensor

_FAR = 2**30  # far above any distance on a grid, in thousandths of a patch
_PAIRS = 2**24  # pairs of tokens in memory at once


def rarity_log_ratio(counts: Tensor, alpha: float, delta: float) -> Tensor:
    """lr_k = δ + ln p_k - ln min p, float64 `[K]` on the CPU; δ for the rarest code, more for frequent ones.

    Args:
        counts: level-1 code counts int64 `[K]` (`VisualTokenizer.prior`).
        alpha: added to every count, so that p of an unseen code is small but not 0.
        delta: δ, the value of the rarest code.

    Source: §3.3 (ρ_k = 1 / p_dom(k)); the reference δ is ours.
    """
    smoothed = (counts.detach().cpu().double() + alpha).log()
    return smoothed - smoothed.min() + delta  # the sum of the counts drops out


def rank_in_code(codes: Tensor, key: Tensor, ties: str) -> tuple[Tensor, Tensor]:
    """The rank of each token within its code by ascending key, and the number of tokens of its code.

    Args:
        codes: int64 `[B, N]`.
        key: `[B, N]`, of any sortable dtype.
        ties: "equal" gives equal keys the lowest of their ranks; "raster" ranks them from left to right.

    Returns:
        (rank from 0, n) int64 `[B, N]` each.
    """
    by_key = key.argsort(dim=1, stable=True)
    order = by_key.gather(1, codes.gather(1, by_key).argsort(dim=1, stable=True))
    code = codes.gather(1, order)
    index = torch.arange(codes.shape[1], device=codes.device).expand_as(codes)
    new = torch.ones_like(code, dtype=torch.bool)
    new[:, 1:] = code[:, 1:] != code[:, :-1]
    first = torch.where(new, index, 0).cummax(dim=1).values
    ends = torch.full_like(code, codes.shape[1])
    ends[:, :-1] = torch.where(new[:, 1:], index[:, 1:], codes.shape[1])
    size = ends.flip(1).cummin(dim=1).values.flip(1) - first
    rank = index - first
    if ties == "equal":
        value = key.gather(1, order)
        new[:, 1:] |= value[:, 1:] != value[:, :-1]
        rank = torch.where(new, index, 0).cummax(dim=1).values - first
    return torch.empty_like(rank).scatter_(1, order, rank), torch.empty_like(size).scatter_(1, order, size)


def isolation(codes: Tensor, positions: Tensor, grid: tuple[int, int], neighbours: int) -> Tensor:
    """Sum of distances to the nearest tokens of the same code, in thousandths of a patch, int64 `[B, N]`.

    All tokens of a code have the same number of neighbours, so the sum ranks them like the average. The only
    token of a code has 0.

    Args:
        codes: level-1 codes int64 `[B, N]`.
        positions: raster indices int64 `[B, N]`.
        grid: (rows, columns) of the full grid.
        neighbours: maximum number of nearest tokens.

    Source: §3.3, "average distance to its nearest neighbors of the same codebook ID"; their number is ours.
    """
    count = codes.shape[1]
    nearest = min(neighbours, count)
    table = _distances(grid, codes.device)
    whole = count == table.shape[0]  # then token i has the raster index i
    parts = []
    rows = max(1, _PAIRS // count**2)
    for code, position in zip(codes.split(rows), positions.split(rows), strict=True):
        distance = table if whole else table[position[:, :, None], position[:, None, :]]
        same = code[:, :, None] == code[:, None, :]
        close = torch.where(same, distance, _FAR).topk(nearest, dim=2, largest=False, sorted=False).values
        parts.append(torch.where(close < _FAR, close, 0).sum(dim=2))
    return torch.cat(parts)


def keep_until(n: Tensor, j: Tensor, log_ratio: Tensor) -> Tensor:
    """γ* = ln(n / j) / lr, float64: a token is kept as long as γ < γ*; infinite for j = 0.

    Args:
        n: tokens of the code in this image, int64 `[B, N]`.
        j: number of the token among them, int64 `[B, N]`.
        log_ratio: lr of the token's code, float64 `[B, N]`.

    Source: §3.3, in the form derived at the top of this file.
    """
    table = _logarithms(int(n.shape[1]), n.device)
    return table[n, j] / log_ratio


@lru_cache(maxsize=8)
def _distances(grid: tuple[int, int], device: torch.device) -> Tensor:
    """int32 `[N, N]`: thousandths of a patch between raster indices; `_FAR` on the diagonal."""
    rows, columns = grid
    index = torch.arange(rows * columns)
    y, x = index // columns, index % columns
    squared = (y[:, None] - y).square() + (x[:, None] - x).square()
    return (squared.double().sqrt() * 1000).round().int().fill_diagonal_(_FAR).to(device)


@lru_cache(maxsize=8)
def _logarithms(count: int, device: torch.device) -> Tensor:
    """float64 `[N + 1, N + 1]`: ln(n / j) at `[n, j]`, infinite at j = 0; 6/4 and 3/2 give the same bits."""
    numbers = torch.arange(count + 1, dtype=torch.float64)
    return (numbers[:, None] / numbers).log().to(device)  # computed on the CPU: the same bits everywhere
