"""`prune_tokens`: fewer visual tokens per image, by an exact budget (§3.3)."""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from craft.core.errors import CraftError
from craft.core.tokens import VisionTokens
from craft.pruning.strategies import QUOTAS, STRATEGIES, PruningSettings, QuotaOrder

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
    settings: PruningSettings | None = None,
) -> VisionTokens:
    """Keep the fraction `keep_ratio` of every image's tokens, in raster order.

    A row depends only on its image, the sets for two ratios are nested (in all strategies but "strided"), and
    every device keeps the same tokens. If there is nothing to prune, `tokens` itself is returned.

    Args:
        tokens: B images of N tokens each.
        prior: level-1 code counts int64 `[K]`; may be None for strategies without quotas.
        keep_ratio: M / N; M = ⌊keep · N + ½⌋, at least 1.
        strategy: a key of `STRATEGIES`; "full" is the paper's.
        budget: "exact" keeps M tokens in every row. "approx" is the paper's |S*| ≈ M: it takes the γ whose
            quotas have the total nearest to M (the smaller of two equally near ones), so rows differ in
            length and every code keeps a token; for quota strategies only.
        scores: importance `[B, N]`; "cls-attention" and "fastv" need it.
        settings: the strategy's settings; `prior` and `scores` in it are replaced by those above.

    Returns:
        `VisionTokens` of M tokens with their `positions` in the full grid. `floor_hit` bool `[B]` is True if
        M is below the number of distinct codes; then "exact" drops codes, the most frequent first. With
        "approx", rows are padded at the end, according to `attention_mask`.

    Raises:
        CraftError: an argument is out of range or unknown, the strategy lacks its prior or scores, the prior
            belongs to another codebook, or `tokens` are padded.

    Source: §3.3.
    """
    count = tokens.codes.shape[1]
    size = budget_of(keep_ratio, count)
    _check(strategy, budget)
    if size == count:
        return tokens
    if tokens.codes.shape[2] == 0:
        raise CraftError(
            "The tokens of a continuous LVLM cannot be pruned, because they have no codes; use keep_ratio=1."
        )
    if tokens.attention_mask is not None:
        raise CraftError("These tokens are padded (rows have different lengths); prune before padding.")
    settings = replace(settings or PruningSettings(), prior=prior, scores=scores)
    device = tokens.codes.device
    source = tokens.to("cpu") if device.type == "mps" else tokens  # MPS has no float64
    mask = None
    with torch.no_grad():
        if budget == "approx":
            index, mask = _nearest(QUOTAS[strategy](source, settings), size)
            mask = mask.to(device)
        else:
            index = STRATEGIES[strategy](source, size, settings).sort(dim=1).values
        floor_hit = distinct_codes(tokens.codes[..., 0]) > size
    return _take(tokens, index.to(device), mask, floor_hit)


def distinct_codes(codes: Tensor) -> Tensor:
    """The number of distinct codes of each image: int64 `[B]` from level-1 codes int64 `[B, N]`."""
    ordered = codes.sort(dim=1).values
    return (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1) + 1


def _check(strategy: str, budget: str) -> None:
    if strategy not in STRATEGIES:
        raise CraftError(f"The pruning strategy {strategy!r} is unknown; use one of {', '.join(STRATEGIES)}.")
    if budget not in get_args(Budget):
        raise CraftError(f"budget is {budget!r}; use exact or approx.")
    if budget == "approx" and strategy not in QUOTAS:
        raise CraftError(
            f"budget='approx' needs quotas, and the strategy {strategy!r} has none; use budget='exact'."
        )


def _nearest(quotas: QuotaOrder, size: int) -> tuple[Tensor, Tensor]:
    """The quota sets whose sizes are nearest to `size`, as padded indices and their mask `[B, max]`."""
    until = quotas.until
    threshold = until[:, size - 1 : size]
    fewer, more = (until > threshold).sum(dim=1), (until >= threshold).sum(dim=1)
    sizes = torch.where((fewer > 0) & (size - fewer <= more - size), fewer, more)
    column = torch.arange(int(sizes.max()) if len(sizes) else 0, device=until.device)
    mask = column < sizes[:, None]
    count = until.shape[1]
    index = torch.where(mask, quotas.order[:, : len(column)], count).sort(dim=1).values  # padding sorts last
    return index.clamp(max=count - 1), mask


def _take(tokens: VisionTokens, index: Tensor, mask: Tensor | None, floor_hit: Tensor) -> VisionTokens:
    """The tokens at indices int64 `[B, M]`."""
    fields = ("features", "codes", "quantized", "residual", "positions", "partial_sums")
    row = torch.arange(len(index), device=index.device)[:, None]
    present = {name: value for name in fields if (value := getattr(tokens, name)) is not None}
    taken = {name: value[row, index] for name, value in present.items()}
    return replace(tokens, **taken, attention_mask=mask, floor_hit=floor_hit)
