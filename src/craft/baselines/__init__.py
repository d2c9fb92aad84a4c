"""What CRAFT is compared with (§4.2, §12.1): other ways of tuning an LVLM, on the same loop, data and budget.

Each entry of `METHODS` is called as `craft.adapt` is; its result has `.lvlm`, tuned and ready to answer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from craft.baselines.ldifs import LDIFS
from craft.baselines.llm_lora import LLM_LORA
from craft.baselines.projector_ft import PROJECTOR_FT
from craft.baselines.tuning import BaselineResult, load_tuned, rehearse, tune
from craft.baselines.vision_ft import VISION_FT
from craft.baselines.vision_ft_codebook import vision_ft_codebook
from craft.baselines.zero_shot import zero_shot

__all__ = ["METHODS", "BaselineResult", "load_tuned", "rehearse"]

TUNING = {method.name: method for method in (VISION_FT, PROJECTOR_FT, LDIFS, LLM_LORA)}
"""The methods that `tune` runs, by name."""

METHODS: dict[str, Callable[..., Any]] = {
    "zero-shot": zero_shot,
    **{name: partial(tune, method) for name, method in TUNING.items()},
    "vision-ft-codebook": vision_ft_codebook,
}
"""By name: `METHODS["vision-ft"](model, data, out, seed=0, **settings)`."""
