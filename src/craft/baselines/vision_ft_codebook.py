"""Vision FT with the codebook: CRAFT without what regulates it. The paper leaves open how that compares."""

from pathlib import Path
from typing import Any

from craft.data import Data
from craft.models.lvlm import LVLM
from craft.recipes.adapt import AdaptResult, adapt
from craft.recipes.opening import Config, run_settings
from craft.training.config import AdaptConfig

FIXED = {
    "losses.commitment.weight": 0.0,
    "losses.contrastive.weight": 0.0,
    "losses.retention.weight": 0.0,
}
"""Settings of `craft.adapt` that make the method."""


def vision_ft_codebook(
    model: str | Path | LVLM | None = None,
    data: str | Path | Data | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    config: Config = None,
    resume: bool = False,
    overwrite: bool = False,
    **overrides: Any,
) -> AdaptResult:
    """`craft.adapt` with the autoregressive loss alone: no commitment, contrastive or retention loss.

    The result is an adapted encoder for the codebook, as that of `craft.adapt`. Arguments and errors are
    those of `craft.adapt`; the run folder is by default `runs/` and the names of data and method.

    Source: Table 5 without commitment; ours as a baseline.
    """
    named = {**overrides, **FIXED}
    suffix = "-vision-ft-codebook"
    settings = run_settings(AdaptConfig, model, data, out, seed, max_steps, config, named, suffix)
    return adapt(model, data, config=settings, resume=resume, overwrite=overwrite)
