"""Which tokens to keep: one function per strategy, all of one signature, in the dict `STRATEGIES`.

A strategy takes the tokens of B images, a budget M and `Settings`, and returns the indices of M different
tokens per image, int64 `[B, M]` in any order. A row depends on its own image alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from craft.core.errors import CraftError
from craft.core.seeding import stable_seed
from craft.core.tokens import VisionTokens
from craft.pruning.quota import isolation, keep_until, rank_in_code, rarity_log_ratio


@dataclass(frozen=True)
class Settings:
    """What strategies can be given beside tokens and budget.

    Attributes:
        prior: level-1 code counts int64 `[K]`; the quota strategies need it.
        scores: importance `[B, N]` from elsewhere; "cls-attention" and "fastv" need it.
        delta: δ > 0, how much even the rarest code is pruned: near 0 it is spared as long as another can be
            pruned; the larger δ, the less rarity counts, and at infinity all codes shrink alike.
        beta: β in [0, 1], weight of spatial isolation against residual in the order within a code.
        alpha: added to every count of the prior.
        neighbours: nearest tokens of the same code that isolation looks at.
        seed: of what is drawn by lot.

    Source: §3.3; all four numbers are ours (docs/paper_map.md says why).
    """

    prior: Tensor | None = None
    scores: Tensor | None = None
    delta: float = 1.0
    beta: float = 0.5
    alpha: float = 1.0
    neighbours: int = 4
    seed: int = 0


Strategy = Callable[[VisionTokens, int, Settings], Tensor]


@dataclass(frozen=True)
class QuotaOrder:
    """The order in which the quota strategies give tokens up.

    Attributes:
        order: int64 `[B, N]`, token indices, the last to go first.
        until: γ* of the tokens in that order, float64 `[B, N]`, falling; infinite for the last one of a code.
    """

    order: Tensor
    until: Tensor


def random(tokens: VisionTokens, keep: int, settings: Settings) -> Tensor:
    """A lot for each token, drawn from the seed and the image's own codes. Nested over budgets."""
    return _lots(tokens, settings.seed).argsort(dim=1, stable=True)[:, :keep]


def strided(tokens: VisionTokens, keep: int, settings: Settings) -> Tensor:
    """Every (N/M)-th token in raster order, the same for all images. Not nested."""
    count = tokens.codes.shape[1]
    steps = torch.arange(keep, device=tokens.codes.device)
    return ((2 * steps + 1) * count // (2 * keep)).expand(len(tokens), keep)


def by_quota(name: str) -> Strategy:
    """The first tokens in an order of `QUOTAS`. Nested over budgets. Source: §3.3."""
    return lambda tokens, keep, settings: QUOTAS[name](tokens, settings).order[:, :keep]


def divprune(tokens: VisionTokens, keep: int, settings: Settings) -> Tensor:
    """DivPrune: greedy max-min cosine distance, here of the codeword sums z̃, with a running minimum.

    The first token is the one farthest from its nearest other, as in the authors' code; equal distances go to
    the leftmost token. M steps in turn, the only strategy with a loop. Nested over budgets.

    Source: Alvar et al., 2025 (arXiv 2503.02175).
    """
    unit = F.normalize(tokens.quantized.detach().double(), dim=2)
    distance = (1 - unit @ unit.transpose(1, 2)).round(decimals=9)  # equal ones stay equal on every device
    rows = torch.arange(len(tokens), device=unit.device)
    itself = torch.eye(unit.shape[1], dtype=torch.bool, device=unit.device)
    chosen = distance.masked_fill(itself, torch.inf).amin(dim=2).argmax(dim=1)
    nearest = torch.full_like(distance[:, 0], torch.inf)
    picks = []
    for _ in range(keep):
        picks.append(chosen)
        nearest = torch.minimum(nearest, distance[rows, chosen])
        nearest = nearest.scatter(1, chosen[:, None], -torch.inf)  # taken: never again
        chosen = nearest.argmax(dim=1)
    return torch.stack(picks, dim=1)


def highest(tokens: VisionTokens, keep: int, settings: Settings) -> Tensor:
    """The tokens with the highest `scores`. Nested over budgets.

    With [CLS] attention of the vision tower (`craft.models.attention.cls_attention`): the dominant tokens of
    VisionZip (arXiv 2412.04467), whose merged ones would leave the codebook. With attention received at an
    early layer of the LLM (`received_attention`): the criterion of FastV (arXiv 2403.06764).

    Raises:
        CraftError: `scores` are missing or not `[B, N]`.
    """
    scores = settings.scores
    if scores is None or scores.shape != tokens.codes.shape[:2]:
        given = "none were given" if scores is None else f"these have shape {list(scores.shape)}"
        raise CraftError(
            f"This strategy needs scores [B, N] = {list(tokens.codes.shape[:2])}, and {given}; "
            "craft.models.attention computes them."
        )
    return scores.to(tokens.codes.device).argsort(dim=1, descending=True, stable=True)[:, :keep]


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
"""The paper's ablation ladder (§4.6) with a second blind baseline, then peers that keep discrete tokens."""


def quota(tokens: VisionTokens, settings: Settings) -> QuotaOrder:
    """Rarity-weighted quotas; within a code by lot. Source: §3.3, §4.6 ("per-ID quotas")."""
    return _order(tokens, settings, _lots(tokens, settings.seed))


def quota_residual(tokens: VisionTokens, settings: Settings) -> QuotaOrder:
    """Quotas; within a code the largest residuals stay. Source: §3.3, §4.6."""
    return _order(tokens, settings, _rank(tokens, tokens.residual.detach()))


def quota_residual_isolation(tokens: VisionTokens, settings: Settings) -> QuotaOrder:
    """Quotas; within a code large residuals and isolated tokens stay: the paper's method.

    Each cue is turned into ranks in [0, 1] within the code, and `beta` mixes them. In turn would not do:
    residuals are hardly ever equal, so the second cue would never be asked.

    Source: §3.3, "within-ID selection"; the mean of ranks is ours.
    """
    residual = _rank(tokens, tokens.residual.detach())
    apart = isolation(tokens.codes[..., 0], tokens.positions, tokens.grid, settings.neighbours)
    return _order(tokens, settings, (1 - settings.beta) * residual + settings.beta * _rank(tokens, apart))


QUOTAS: dict[str, Callable[[VisionTokens, Settings], QuotaOrder]] = {
    "quota": quota,
    "quota+residual": quota_residual,
    "full": quota_residual_isolation,
}
"""The strategies with quotas, which need a code prior: each is an order of all tokens."""


def _rank(tokens: VisionTokens, cue: Tensor) -> Tensor:
    """The rank of a cue `[B, N]` within the code, float64 in [0, 1]; equal values have equal ranks."""
    rank, size = rank_in_code(tokens.codes[..., 0], cue, ties="equal")
    return rank / (size - 1).clamp(min=1).double()


def _order(tokens: VisionTokens, settings: Settings, within: Tensor) -> QuotaOrder:
    """Tokens by falling γ*; equal ones by rarity, then by `within`, then from the left."""
    codes = tokens.codes[..., 0]
    ratio = _log_ratio(settings, codes)
    j, n = rank_in_code(codes, -within, ties="raster")
    until = keep_until(n, j, ratio)
    order = (-within).argsort(dim=1, stable=True)  # the least important key first, each sort stable
    order = order.gather(1, ratio.gather(1, order).argsort(dim=1, stable=True))
    order = order.gather(1, until.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return QuotaOrder(order, until.gather(1, order))


def _log_ratio(settings: Settings, codes: Tensor) -> Tensor:
    if settings.prior is None:
        raise CraftError(
            "Pruning by rarity needs a code prior (level-1 code counts), and there is none: it comes with an "
            "adapted encoder, or `craft prior DATA` makes one."
        )
    table = rarity_log_ratio(settings.prior, settings.alpha, settings.delta)
    if codes.numel() and int(codes.max()) >= len(table):
        raise CraftError(
            f"The code prior counts {len(table)} codes, and these tokens have code {int(codes.max())}: "
            "it was made for another codebook."
        )
    return table.to(codes.device)[codes]


def _lots(tokens: VisionTokens, seed: int) -> Tensor:
    """A 63-bit number per token, float-free: a function of the seed, the image's codes and the position."""
    place = tokens.positions
    levels = torch.arange(tokens.codes.shape[2], device=place.device)
    image = _mix(_mix(tokens.codes * 1_000_003 + levels) + place[..., None]).sum(dim=(1, 2), keepdim=True)
    return _mix(_mix(image[..., 0] + stable_seed("pruning", seed)) + place)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, which wraps around; the sign bit is cleared at the end."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return (x ^ ((x >> 31) & 0x1FFFFFFFF)) & 0x7FFFFFFFFFFFFFFF
