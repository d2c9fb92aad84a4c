"""Zero-shot: nothing is tuned. It has the shape of a method so that tables can treat all rows alike."""

from pathlib import Path
from typing import Any

from craft.baselines.tuning import BaselineResult
from craft.data import Data
from craft.models.lvlm import LVLM
from craft.recipes.opening import Config, Model, run_data, run_settings
from craft.training.config import BaselineConfig


def zero_shot(
    model: str | Path | LVLM | None = None,
    data: str | Path | Data | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    config: Config = None,
    resume: bool = False,
    overwrite: bool = False,
    **overrides: Any,
) -> BaselineResult:
    """The model as it is, with the classes that the methods of this seed would not see.

    Arguments are those of `craft.adapt`; nothing is trained, and nothing written.

    Raises:
        ConfigError, DataError, CheckpointError: as for `craft.adapt`.
    """
    settings = run_settings(BaselineConfig, model, data, out, seed, max_steps, config, overrides)
    settings = settings.model_copy(update={"method": "zero-shot", "out": None})
    opened = Model(model, settings, parts=())
    held_out = run_data(data, settings, opened).held_out
    return BaselineResult(None, None, {"steps": 0}, held_out, settings, opened())
