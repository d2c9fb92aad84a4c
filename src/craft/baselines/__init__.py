"""What CRAFT is compared with (§4.2, §12.1): other ways of tuning an LVLM, on the same loop, data and budget.

Each entry of `METHODS` is called as `craft.adapt` is; its result has `.lvlm`, tuned and ready to answer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from craft.baselines.ldifs import LDIFS
from craft.baselines.llm_lora import LLM_LORA
from craft.baselines.projector_ft import PROJECTOR_FT
from craft.baselines.tuning import BaselineResult, load_tuned, rehearse_tuning, tune
from craft.baselines.vision_ft import VISION_FT
from craft.baselines.vision_ft_codebook import FIXED, vision_ft_codebook
from craft.baselines.zero_shot import zero_shot
from craft.lessons.rehearsal import Rehearsal
from craft.recipes.adapt import rehearse as rehearse_adapt

__all__ = ["METHODS", "BaselineResult", "load_tuned", "rehearse"]

TUNING = {method.name: method for method in (VISION_FT, PROJECTOR_FT, LDIFS, LLM_LORA)}
"""The methods that `tune` runs, by name."""

METHODS: dict[str, Callable[..., Any]] = {
    "zero-shot": zero_shot,
    **{name: partial(tune, method) for name, method in TUNING.items()},
    "vision-ft-codebook": vision_ft_codebook,
}
"""By name: `METHODS["vision-ft"](model, data, out, seed=0, **settings)`."""


def rehearse(
    method: str,
    model: Any = None,
    data: Any = None,
    seed: int | None = None,
    max_steps: int | None = None,
    config: Any = None,
    **overrides: Any,
) -> Rehearsal:
    """The dry run of a method that trains: one batch forward and backward; nothing is written.

    Args:
        method: a key of `METHODS` but zero-shot.
        model, data, seed, max_steps, config, overrides: as for the method.

    Raises:
        CraftError: whatever the method with the same arguments would stumble over at its start.
    """
    if method in TUNING:
        return rehearse_tuning(TUNING[method], model, data, seed, max_steps, config, **overrides)
    return rehearse_adapt(model, data, seed, max_steps, config, **{**overrides, **FIXED})
