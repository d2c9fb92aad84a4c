"""`prune_tokens`: fewer visual tokens per image, exactly as many as asked for (§3.3)."""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from craft.core.errors import CraftError
from craft.core.tokens import VisionTokens
from craft.pruning.strategies import QUOTAS, STRATEGIES, QuotaOrder, Settings

Budget = Literal["exact", "approx"]


def budget_of(keep_ratio: float, count: int) -> int:
    """M = ⌊keep · N + ½⌋, at least 1 and at most N.

    Args:
        keep_ratio: M / N, above 0 and at most 1.
        count: N.

    Raises:
        CraftError: `keep_ratio` is out of range.
    """
    if not 0 < keep_ratio <= 1:
        raise CraftError(f"keep_ratio is {keep_ratio}; it must be above 0 and at most 1.")
    return max(1, min(count, int(keep_ratio * count + 0.5)))


def prune_tokens(
    tokens: VisionTokens,
    prior: Tensor | None,
    keep_ratio: float,
    *,
    strategy: str = "full",
    budget: Budget = "exact",
    scores: Tensor | None = None,
    delta: float = 1.0,
    beta: float = 0.5,
    alpha: float = 1.0,
    neighbours: int = 4,
    seed: int = 0,
) -> VisionTokens:
    """Keep the share `keep_ratio` of every image's tokens, in raster order.

    A row depends on its own image alone, the kept sets of two ratios are nested (all strategies but
    "strided"), and every device keeps the same tokens. Whatever needs no pruning comes back as it is.

    Args:
        tokens: B images of N tokens each.
        prior: level-1 code counts int64 `[K]`; None will do for strategies without quotas.
        keep_ratio: M / N; M = ⌊keep · N + ½⌋, at least 1.
        strategy: a key of `STRATEGIES`; "full" is the paper's.
        budget: "exact" keeps M tokens in every row. "approx" is the paper's |S*| ≈ M: the quotas at the γ
            whose total is nearest to M (of two equally near the smaller), so that rows differ in length and
            every code keeps a token; quota strategies only.
        scores, delta, beta, alpha, neighbours, seed: see `craft.pruning.Settings`.

    Returns:
        `VisionTokens` of M tokens with their `positions` in the full grid. `floor_hit` bool `[B]` says where
        M is below the number of distinct codes; there "exact" gives up codes, the most frequent first. With
        "approx", rows are padded at the end and `attention_mask` says where.

    Raises:
        CraftError: an argument is out of range or unknown, the strategy lacks its prior or scores, the prior
            counts another codebook, or `tokens` are padded.

    Source: §3.3.
    """
    count = tokens.codes.shape[1]
    keep = budget_of(keep_ratio, count)
    _check(strategy, budget, delta, beta, alpha, neighbours)
    if keep == count:
        return tokens
    if tokens.codes.shape[2] == 0:
        raise CraftError("The tokens of a continuous LVLM have no codes to be pruned by; keep all of them.")
    if tokens.attention_mask is not None:
        raise CraftError("These tokens are padded (rows of different lengths); prune before padding.")
    settings = Settings(prior, scores, delta, beta, alpha, neighbours, seed)
    device = tokens.codes.device
    here = tokens.to("cpu") if device.type == "mps" else tokens  # MPS has no float64
    mask = None
    with torch.no_grad():
        if budget == "approx":
            kept, mask = _nearest(QUOTAS[strategy](here, settings), keep)
            mask = mask.to(device)
        else:
            kept = STRATEGIES[strategy](here, keep, settings).sort(dim=1).values
        floor_hit = distinct_codes(tokens.codes[..., 0]) > keep
    return _take(tokens, kept.to(device), mask, floor_hit)


def distinct_codes(codes: Tensor) -> Tensor:
    """How many different codes each image has: int64 `[B]` from level-1 codes int64 `[B, N]`."""
    ordered = codes.sort(dim=1).values
    return (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1) + 1


def _check(strategy: str, budget: str, delta: float, beta: float, alpha: float, neighbours: int) -> None:
    if strategy not in STRATEGIES:
        raise CraftError(f"There is no pruning strategy {strategy!r}; use one of {', '.join(STRATEGIES)}.")
    if budget not in get_args(Budget):
        raise CraftError(f"budget is {budget!r}; use exact or approx.")
    if budget == "approx" and strategy not in QUOTAS:
        raise CraftError(
            f"budget='approx' is a total of quotas, and {strategy!r} has none; use budget='exact'."
        )
    if not (delta > 0 and delta < float("inf")):
        raise CraftError(f"delta is {delta}; it must be a finite number above 0.")
    if not 0 <= beta <= 1:
        raise CraftError(f"beta is {beta}; it must be between 0 and 1.")
    if not (alpha > 0 and alpha < float("inf")):
        raise CraftError(f"alpha is {alpha}; it must be a finite number above 0, so that unseen codes count.")
    if neighbours < 1:
        raise CraftError(f"neighbours is {neighbours}; it must be at least 1.")


def _nearest(found: QuotaOrder, keep: int) -> tuple[Tensor, Tensor]:
    """The quota sets whose sizes are nearest to `keep`, as padded indices and their mask `[B, max]`."""
    until = found.until
    at = until[:, keep - 1 : keep]
    fewer, more = (until > at).sum(dim=1), (until >= at).sum(dim=1)
    size = torch.where((fewer > 0) & (keep - fewer <= more - keep), fewer, more)
    index = torch.arange(int(size.max()) if len(size) else 0, device=until.device)
    inside = index < size[:, None]
    count = until.shape[1]
    kept = torch.where(inside, found.order[:, : len(index)], count).sort(dim=1).values  # padding sorts last
    return kept.clamp(max=count - 1), inside


def _take(tokens: VisionTokens, kept: Tensor, mask: Tensor | None, floor_hit: Tensor) -> VisionTokens:
    """The tokens at indices int64 `[B, M]`."""
    fields = ("features", "codes", "quantized", "residual", "positions", "partial_sums")
    row = torch.arange(len(kept), device=kept.device)[:, None]  # vectors are copied whole
    present = {name: value for name in fields if (value := getattr(tokens, name)) is not None}
    picked = {name: value[row, kept] for name, value in present.items()}
    return replace(tokens, **picked, attention_mask=mask, floor_hit=floor_hit)
