"""What a training run on labelled pictures writes down: its start, its metrics, its manifest."""

from typing import Any

from craft.core.errors import ConfigError
from craft.data import Data
from craft.models.lvlm import LVLM
from craft.recipes.questions import describe
from craft.training.config import AdaptConfig
from craft.training.fit import FitResult
from craft.training.run_folder import RunFolder


def begin(
    run: RunFolder,
    settings: AdaptConfig,
    lvlm: LVLM,
    data: Data,
    resume: bool,
    overwrite: bool,
    **facts: Any,
) -> None:
    """Open the run folder, and note in `run.json` what trains on what.

    Args:
        run: checked already.
        settings: all settings.
        lvlm: the model that trains.
        data: what it trains on.
        resume, overwrite: as for `RunFolder.open`.
        facts: more fields.

    Raises:
        ConfigError: the run that is continued began with other data.
    """
    run.open(settings, resume, overwrite)
    if run.record.get("data_fingerprint", data.fingerprint) != data.fingerprint:
        raise ConfigError(f"{data.name} is not the data that the run in {run.path} began with; restore it.")
    run.update(data=describe(data, settings.data), data_fingerprint=data.fingerprint, **facts)
    run.update(held_out=list(data.held_out), seed=settings.seed, surrogate=lvlm.name)


def run_metrics(run: RunFolder, result: FitResult) -> dict[str, Any]:
    """What training came to, for people: steps, losses at the end, the kept step and share, minutes; and the
    retention loss's weight (of a baseline None)."""
    return {
        "steps": result.steps,
        "train": {key: value for key, value in result.metrics.items() if isinstance(value, int | float)},
        "best_step": result.best_step,
        "best_validation": result.best_validation,
        "blend": run.record["blend"],
        "retention": run.record.get("retention"),
        "minutes": result.minutes,
    }


def run_manifest(
    run: RunFolder, settings: AdaptConfig, metrics: dict[str, Any], **facts: Any
) -> dict[str, Any]:
    """What the artefact says of the run that made it; `facts` are more fields. `begin` noted the rest."""
    return {
        "surrogate": run.record["surrogate"],
        **facts,
        "data": run.record["data"],
        "held_out": run.record["held_out"],
        "config": settings.model_dump(mode="json"),
        "metrics": metrics,
        "seed": settings.seed,
        "made_with": run.record["machine"],
    }
