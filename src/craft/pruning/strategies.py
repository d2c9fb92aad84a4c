"""Pruning strategies: functions of one signature in the dict `STRATEGIES`.

A strategy takes the tokens of B images, a budget M and `PruningSettings`, and returns the indices of M
different tokens per image, int64 `[B, M]` in any order. A row depends only on its image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from craft.core.errors import CraftError
from craft.core.seeding import stable_seed
from craft.core.tensors import counts_fault
from craft.core.tokens import VisionTokens
from craft.pruning.quota import isolation, keep_until, rank_in_code, rarity_log_ratio


@dataclass(frozen=True)
class PruningSettings:
    """Settings of strategies.

    Attributes:
        prior: level-1 code counts int64 `[K]`; the quota strategies need it.
        scores: importance `[B, N]` from elsewhere; "cls-attention" and "fastv" need it.
        delta: δ > 0, how much the rarest code is pruned. Near 0, it loses no token as long as another code
            can be pruned; the larger δ, the less rarity counts, and at infinity all codes shrink equally.
        beta: β in [0, 1], weight of spatial isolation; that of the residual is 1 - β (order within a code).
        alpha: added to every count of the prior.
        neighbours: number of nearest tokens of the same code that isolation considers.
        seed: of random choices.

    Raises:
        CraftError: a value is out of range.

    Source: §3.3; the four numbers are ours (docs/paper_map.md has the reasons).
    """

    prior: Tensor | None = None
    scores: Tensor | None = None
    delta: float = 1.0
    beta: float = 0.5
    alpha: float = 1.0
    neighbours: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.delta < float("inf"):
            raise CraftError(f"delta is {self.delta}; it must be a finite number above 0.")
        if not 0 <= self.beta <= 1:
            raise CraftError(f"beta is {self.beta}; it must be between 0 and 1.")
        if not 0 < self.alpha < float("inf"):
            raise CraftError(
                f"alpha is {self.alpha}; it must be a finite number above 0, so that unseen codes count."
            )
        if self.neighbours < 1:
            raise CraftError(f"neighbours is {self.neighbours}; it must be at least 1.")
        if self.prior is not None and (fault := counts_fault(self.prior)):
            raise CraftError(f"The code prior {fault}; `craft prior DATA --out FILE` makes one.")
        if self.scores is not None and not bool(torch.isfinite(self.scores).all()):
            raise CraftError("The scores of tokens are not finite (NaN or infinity); compute them again.")


Strategy = Callable[[VisionTokens, int, PruningSettings], Tensor]


@dataclass(frozen=True)
class QuotaOrder:
    """The order in which the quota strategies drop tokens.

    Attributes:
        order: int64 `[B, N]`, token indices; the token that is dropped last comes first.
        until: γ* of the tokens in that order, float64 `[B, N]`, descending; infinite for the last one of a
            code.
    """

    order: Tensor
    until: Tensor


def random(tokens: VisionTokens, size: int, settings: PruningSettings) -> Tensor:
    """Random tokens, a function of the seed and the image's codes. Nested over budgets."""
    return _random_keys(tokens, settings.seed).argsort(dim=1, stable=True)[:, :size]


def strided(tokens: VisionTokens, size: int, settings: PruningSettings) -> Tensor:
    """Every (N/M)-th token in raster order, the same for all images. Not nested."""
    count = tokens.codes.shape[1]
    steps = torch.arange(size, device=tokens.codes.device)
    return ((2 * steps + 1) * count // (2 * size)).expand(len(tokens), size)


def by_quota(name: str) -> Strategy:
    """The strategy that takes the first tokens of an order in `QUOTAS`. Nested over budgets. Source: §3.3."""
    return lambda tokens, size, settings: QUOTAS[name](tokens, settings).order[:, :size]


def divprune(tokens: VisionTokens, size: int, settings: PruningSettings) -> Tensor:
    """DivPrune: greedy max-min cosine distance of the codeword sums z̃, with a running minimum.

    The first token is the one farthest from its nearest neighbour, as in the authors' code; of equal
    distances, the leftmost token wins. It takes M sequential steps. Nested over budgets.

    Source: Alvar et al., 2025 (arXiv 2503.02175).
    """
    unit = F.normalize(tokens.quantized.detach().double(), dim=2)
    distance = (1 - unit @ unit.transpose(1, 2)).round(
        decimals=9
    )  # equal distances stay equal on every device
    rows = torch.arange(len(tokens), device=unit.device)
    itself = torch.eye(unit.shape[1], dtype=torch.bool, device=unit.device)
    chosen = distance.masked_fill(itself, torch.inf).amin(dim=2).argmax(dim=1)
    nearest = torch.full_like(distance[:, 0], torch.inf)
    picks = []
    for _ in range(size):
        picks.append(chosen)
        nearest = torch.minimum(nearest, distance[rows, chosen])
        nearest = nearest.scatter(1, chosen[:, None], -torch.inf)  # selected once only
        chosen = nearest.argmax(dim=1)
    return torch.stack(picks, dim=1)


def highest(tokens: VisionTokens, size: int, settings: PruningSettings) -> Tensor:
    """The tokens with the highest `scores`. Nested over budgets.

    With [CLS] attention of the vision tower (`cls_attention` in paper/attention.py), these are the dominant
    tokens of VisionZip (arXiv 2412.04467); its merged tokens would not be codewords. With the attention that
    tokens receive at an early layer of the LLM (`received_attention`), it is the criterion of FastV
    (arXiv 2403.06764).

    Raises:
        CraftError: `scores` are missing or not `[B, N]`.
    """
    scores = settings.scores
    if scores is None or scores.shape != tokens.codes.shape[:2]:
        fault = "there are none" if scores is None else f"these have shape {list(scores.shape)}"
        raise CraftError(
            f"This strategy needs scores [B, N] = {list(tokens.codes.shape[:2])}, and {fault}; "
            "paper/attention.py in the repository computes them."
        )
    return scores.to(tokens.codes.device).argsort(dim=1, descending=True, stable=True)[:, :size]


STRATEGIES: dict[str, Strategy] = {
    "random": random,
    "strided": strided,
    "quota": by_quota("quota"),
    "quota+residual": by_quota("quota+residual"),
    "full": by_quota("full"),
    "divprune": divprune,
    "cls-attention": highest,
    "fastv": highest,
}
"""The ablation ladder of the paper (§4.6) with a second blind baseline, then other methods that keep tokens
discrete."""


def quota(tokens: VisionTokens, settings: PruningSettings) -> QuotaOrder:
    """Rarity-weighted quotas; random within a code. Source: §3.3, §4.6 ("per-ID quotas")."""
    return _order(tokens, settings, _random_keys(tokens, settings.seed))


def quota_residual(tokens: VisionTokens, settings: PruningSettings) -> QuotaOrder:
    """Quotas; within a code the largest residuals remain. Source: §3.3, §4.6."""
    return _order(tokens, settings, _rank(tokens, tokens.residual.detach()))


def quota_residual_isolation(tokens: VisionTokens, settings: PruningSettings) -> QuotaOrder:
    """Quotas; within a code large residuals and isolated tokens remain. This is the paper's method.

    Each cue becomes ranks in [0, 1] within the code, and `beta` mixes the two. A lexicographic order would
    ignore isolation, because residuals are almost never equal.

    Source: §3.3, "within-ID selection"; the mean of ranks is ours.
    """
    residual = _rank(tokens, tokens.residual.detach())
    isolated = isolation(tokens.codes[..., 0], tokens.positions, tokens.grid, settings.neighbours)
    return _order(tokens, settings, (1 - settings.beta) * residual + settings.beta * _rank(tokens, isolated))


QUOTAS: dict[str, Callable[[VisionTokens, PruningSettings], QuotaOrder]] = {
    "quota": quota,
    "quota+residual": quota_residual,
    "full": quota_residual_isolation,
}
"""The strategies with quotas, which need a code prior; each gives an order of all tokens."""


def _rank(tokens: VisionTokens, cue: Tensor) -> Tensor:
    """The rank of a cue `[B, N]` within the code, float64 in [0, 1]; equal values have equal ranks."""
    rank, size = rank_in_code(tokens.codes[..., 0], cue, ties="equal")
    return rank / (size - 1).clamp(min=1).double()


def _order(tokens: VisionTokens, settings: PruningSettings, within: Tensor) -> QuotaOrder:
    """Tokens by descending γ*; equal ones by rarity, then by `within`, then from left to right."""
    codes = tokens.codes[..., 0]
    ratio = _log_ratio(settings, codes)
    j, n = rank_in_code(codes, -within, ties="raster")
    until = keep_until(n, j, ratio)
    order = (-within).argsort(dim=1, stable=True)  # the least important key first, each sort stable
    order = order.gather(1, ratio.gather(1, order).argsort(dim=1, stable=True))
    order = order.gather(1, until.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return QuotaOrder(order, until.gather(1, order))


def _log_ratio(settings: PruningSettings, codes: Tensor) -> Tensor:
    if settings.prior is None:
        raise CraftError(
            "Pruning by rarity needs a code prior (level-1 code counts), and there is none: use an adapted "
            "encoder, which has one, or make one with `craft prior DATA`."
        )
    table = rarity_log_ratio(settings.prior, settings.alpha, settings.delta)
    if codes.numel() and int(codes.max()) >= len(table):
        raise CraftError(
            f"The code prior counts {len(table)} codes, and these tokens have code {int(codes.max())}: "
            "it was made for another codebook; make one with `craft prior DATA`."
        )
    return table.to(codes.device)[codes]


def _random_keys(tokens: VisionTokens, seed: int) -> Tensor:
    """A random 63-bit integer per token, a function of the seed, the image's codes and the position."""
    positions = tokens.positions
    levels = torch.arange(tokens.codes.shape[2], device=positions.device)
    image = _mix(_mix(tokens.codes * 1_000_003 + levels) + positions[..., None]).sum(dim=(1, 2), keepdim=True)
    return _mix(_mix(image[..., 0] + stable_seed("pruning", seed)) + positions)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 with wrap-around; the sign bit is cleared at the end."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return (x ^ ((x >> 31) & 0x1FFFFFFFF)) & 0x7FFFFFFFFFFFFFFF
