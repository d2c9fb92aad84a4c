"""Gradients through a token table: the LLM reads rows of its own embedding instead of a projection.

A code selects a row, and nothing differentiable lies between the features and that row. The forward pass
stays exactly the row; a rule here replaces its gradient. Source: ours; the paper's models have projectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TableGradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(features z `[n, d]`, codes int64 `[n, L]`, gradient at the rows `[n, h]`) -> gradient at z `[n, d]`."""

SCORES = 2**26
"""The largest number of scores (tokens times codewords) in a block of `Soft`."""


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, codes: Tensor, rows: Tensor, rule: TableGradient) -> Tensor:
        ctx.save_for_backward(features, codes)
        ctx.rule = rule
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        features, codes = ctx.saved_tensors
        flat = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1]).float()
        gradient = ctx.rule(features.reshape(-1, features.shape[-1]).float(), codes.flatten(0, -2), flat)
        return gradient.reshape(features.shape).to(features.dtype), None, None, None


def through_table(features: Tensor, codes: Tensor, rows: Tensor, rule: TableGradient) -> Tensor:
    """Return `rows` unchanged; pass their gradient to `features` by a rule.

    Args:
        features: z `[..., d]`, the vectors that were compared with the codebook; gets the gradient.
        codes: int64 `[..., L]`.
        rows: `[..., h]`, what the LLM reads; gets no gradient.
        rule: `affine`, `Soft` or `identity`.

    Returns:
        `[..., h]`, bit-identical to `rows`.
    """
    return _Rows.apply(features, codes, rows.detach(), rule)  # type: ignore[no-any-return]


def identity(features: Tensor, codes: Tensor, gradient: Tensor) -> Tensor:
    """The gradient at the rows, unchanged; for tables whose width h is the codebook's width d."""
    return gradient


def affine(slope: Tensor) -> TableGradient:
    """The rule g -> g Mᵀ.

    Args:
        slope: M float `[d, h]`, as `affine_fit` returns it.
    """

    def rule(features: Tensor, codes: Tensor, gradient: Tensor) -> Tensor:
        return gradient @ slope.to(gradient).T

    return rule


def affine_fit(codewords: Tensor, table: Tensor) -> tuple[Tensor, float]:
    """The least-squares fit of a table by an affine map of the codewords, T ≈ C M + m, in float64.

    All codewords weigh the same: weights by frequency leave fewer rows to average over, and fit noisy tables
    worse.

    Args:
        codewords: C `[K, d]`.
        table: T `[K, h]`.

    Returns:
        M float32 `[d, h]`, and R², the share of the table's variance that the fit explains.
    """
    c, t = codewords.detach().double(), table.detach().double()
    c, t = c - c.mean(dim=0), t - t.mean(dim=0)
    slope = torch.linalg.lstsq(c.cpu(), t.cpu(), driver="gelsd").solution.to(c.device)
    rest, whole = (t - c @ slope).square().sum(), t.square().sum()
    return slope.float(), float(1 - rest / whole) if float(whole) else 0.0


@dataclass(frozen=True, eq=False)
class Soft:
    """The rule that differentiates the mean row of nearby codewords.

    At each level, row and codewords are replaced by their means under `p_j = softmax(-|r - c_j|² / τ)`, where
    r is what earlier levels leave of z. The gradient of `g · Σ_j p_j T_j` with respect to r is
    `(2 / τ) Σ_j p_j (g · T_j - Σ_k p_k g · T_k) c_j`. Levels are averaged.

    Attributes:
        levels: the codebook float32 `[L, K, d]`.
        tables: the rows `[L, K, h]`.
        temperatures: τ of each level, in units of squared distance.
        gains: what each level's gradient is divided by; None is 1 (`soft_gain`).
        top_k: the softmax is over this many nearest codewords; None: over all.
    """

    levels: Tensor
    tables: Tensor
    temperatures: Sequence[float]
    gains: Sequence[float] | None = None
    top_k: int | None = None

    def __call__(self, features: Tensor, codes: Tensor, gradient: Tensor) -> Tensor:
        """The gradient at z, as every `TableGradient`."""
        total, rest = torch.zeros_like(features), features
        for level, (codewords, table) in enumerate(zip(self.levels, self.tables, strict=True)):
            tau, gain = self.temperatures[level], 1.0 if self.gains is None else self.gains[level]
            for rows in _blocks(len(features), self._scores()):
                pull = self._pull(rest[rows], gradient[rows], codewords, table, tau)
                total[rows] += (2 / (tau * gain * len(self.levels))) * pull
            rest = rest - codewords[codes[:, level].clamp(min=0)]
        return total

    def held_bytes(self, tokens: int) -> int:
        """Bytes of the rows, and of the scores of one block of the backward pass of some tokens."""
        if self.top_k is None:
            most = 3 * self._scores()  # p, value and their product
        else:  # the distances with a product, or the rows of the nearest with p, value and codes (int64)
            most = max(2 * self.tables.shape[1], self._scores() + 4 * self.top_k)
        block = min(tokens, max(1, SCORES // self._scores()))
        return self.tables.nbytes + block * most * torch.float32.itemsize

    def _scores(self) -> int:
        """Numbers per token in the largest array: a score per code, or the rows of the nearest."""
        size, width = self.tables.shape[1:]
        return size if self.top_k is None else max(size, self.top_k * max(width, self.levels.shape[2]))

    def _pull(self, rest: Tensor, gradient: Tensor, codewords: Tensor, table: Tensor, tau: float) -> Tensor:
        """Σ_j p_j (g · T_j - Σ_k p_k g · T_k) c_j `[n, d]`; of scores `[n, K]`, three exist at once."""
        p, near = _near(rest, codewords, tau, self.top_k)
        if near is None:
            value = gradient @ table.to(gradient).T  # g · T_j
        else:
            value = (table[near].to(gradient) @ gradient[:, :, None]).squeeze(2)
        value -= (p * value).sum(dim=1, keepdim=True)
        return _weighted(value.mul_(p), codewords, near)


def soft_gain(rest: Tensor, codewords: Tensor, temperature: float, top_k: int | None = None) -> float:
    """The mean over tokens of `trace(J) / d`, where J is the Jacobian of the soft codeword `Σ_j p_j c_j`.

    A straight-through estimator has the Jacobian 1; a soft rule divided by this number has the same scale.

    Args:
        rest: r `[n, d]`, what earlier levels leave of z.
        codewords: `[K, d]` of this level.
        temperature: τ, in units of squared distance.
        top_k: as in `Soft`.
    """
    total = 0.0
    squares = codewords.square().sum(dim=1)
    for rows in _blocks(len(rest), max(len(codewords), (top_k or 0) * codewords.shape[1])):
        p, near = _near(rest[rows], codewords, temperature, top_k)
        mean_square = p @ squares if near is None else (p * squares[near]).sum(dim=1)
        variance = mean_square - _weighted(p, codewords, near).square().sum(dim=1)
        total += float(variance.double().sum())
    return 2 / temperature * total / (len(rest) * rest.shape[1])


def median_gap(rest: Tensor, codewords: Tensor) -> float:
    """The median over tokens of the gap between the two smallest squared distances to codewords.

    Args:
        rest: r `[n, d]`, what earlier levels leave of z.
        codewords: `[K, d]` of this level, K at least 2.
    """
    gaps = []
    for rows in _blocks(len(rest), len(codewords)):
        near = _distances(rest[rows], codewords).topk(2, dim=1, largest=False).values
        gaps.append(near[:, 1] - near[:, 0])
    return float(torch.cat(gaps).median())


def _near(
    rest: Tensor, codewords: Tensor, temperature: float, top_k: int | None
) -> tuple[Tensor, Tensor | None]:
    """p float `[n, K]`: the softmax of `-|r - c_j|² / τ`; or `[n, k]` over the nearest, and their codes."""
    distances, near = _distances(rest, codewords), None
    if top_k is not None:
        distances, near = distances.topk(top_k, dim=1, largest=False)
    return (-distances / temperature).softmax(dim=1), near


def _weighted(weights: Tensor, codewords: Tensor, near: Tensor | None) -> Tensor:
    """Σ_j w_j c_j `[n, d]`, over all codes or over those in `near` `[n, k]`."""
    return weights @ codewords if near is None else (weights[:, None] @ codewords[near]).squeeze(1)


def _distances(rest: Tensor, codewords: Tensor) -> Tensor:
    """|r - c_j|² - |r|² `[n, K]`."""
    return codewords.square().sum(dim=1) - 2 * (rest @ codewords.T)


def _blocks(tokens: int, size: int) -> list[slice]:
    step = max(1, SCORES // size)
    return [slice(start, start + step) for start in range(0, tokens, step)]
