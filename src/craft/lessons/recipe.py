"""What of a run is not the paper's: the settings in which it departs from the preset "paper"."""

from collections.abc import Mapping
from typing import Any

from craft.core.settings import read_preset
from craft.core.text import flat
from craft.data import Data
from craft.lessons.retention import kept_share, retention_weight
from craft.training.config import PRESETS, AdaptConfig, BaselineConfig
from craft.training.lesson import Settled


def departures(config: AdaptConfig, data: Data, earlier: Settled | None = None) -> dict[str, Any]:
    """The settings that the paper's recipe has otherwise, by dotted name, as this run uses them.

    Args:
        config: all settings.
        data: decides what a weight of None is.
        earlier: the choices of the run to resume.
    """
    retention = retention_weight(config.losses.retention.weight, data.train, earlier)
    used = flat(config.model_dump(mode="json")) | {
        "losses.retention.weight": retention,
        "blend": kept_share(config.blend, data.train, retention),
        "losses.contrastive.weight": config.contrastive_weight(data.task),
    }
    wanted = flat(read_preset(PRESETS, "paper"))
    wanted["losses.contrastive.weight"] = AdaptConfig.build({"preset": "paper"}).contrastive_weight(data.task)
    if isinstance(config, BaselineConfig):  # of the losses it has only `sal`
        wanted = {n: v for n, v in wanted.items() if not n.startswith("losses.") or "sal" in n}
    return {name: used[name] for name, value in wanted.items() if used[name] != value}


def recipe_line(departing: Mapping[str, Any], preset: str | None) -> str:
    """What a run prints at its start: "not the paper's: contrastive 0, augment 1; --preset paper"."""
    listed = ", ".join(
        f"{name.removeprefix('losses.').removesuffix('.weight')} {value:g}"
        if isinstance(value, float)
        else f"{name} {value}"
        for name, value in departing.items()
    )
    if preset == "paper":
        return "the paper's recipe (preset paper)" + (f", except: {listed}" if departing else "")
    return f"not the paper's: {listed}; --preset paper" if departing else "the paper's recipe"
