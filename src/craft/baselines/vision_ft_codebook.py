"""Vision FT with the codebook: CRAFT without what regulates it. The paper leaves open how that compares."""

from typing import Any

from craft.recipes.adapt import AdaptResult, adapt

FIXED = {"losses.commitment.weight": 0.0, "losses.contrastive.weight": 0.0}
"""Settings of `craft.adapt` that make the method."""


def vision_ft_codebook(*arguments: Any, **overrides: Any) -> AdaptResult:
    """`craft.adapt` with the autoregressive loss alone: neither commitment nor contrastive term.

    The result is an adapted encoder for the codebook, as that of `craft.adapt`. Arguments and errors are
    those of `craft.adapt`.

    Source: Table 5 without commitment; ours as a baseline.
    """
    return adapt(*arguments, **{**overrides, **FIXED})
