"""The recipe of every baseline that trains: `craft.adapt`'s, with another lesson and other parts written."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from craft.baselines.method import Method
from craft.core.processes import on_main
from craft.core.progress import say
from craft.data import Data
from craft.formats.encoder import load_artefact
from craft.formats.load import load
from craft.formats.tuned import part_fingerprint, save_tuned
from craft.lessons.adapt import image_groups
from craft.lessons.rehearsal import Rehearsal, rehearse_step
from craft.models.freezing import part_hashes, parts
from craft.models.lvlm import LVLM
from craft.recipes.opening import Config, Model, run_folder, run_settings, training_data, validation
from craft.recipes.record import begin, run_manifest, run_metrics
from craft.training.config import BaselineConfig
from craft.training.fit import fit
from craft.training.lora import take_lora


@dataclass(frozen=True)
class BaselineResult:
    """A tuned LVLM.

    Attributes:
        out: the run folder; None of zero-shot.
        tuned: the tuned parts in it; `with_encoder`, `craft.evaluate` and `load_tuned` take either.
        metrics: steps, losses at the end, the kept step and its validation score where validation chose,
            minutes.
        held_out: the classes that training never saw.
        config: every setting.
        lvlm: the model with the tuned parts, ready to answer.
    """

    out: Path | None
    tuned: Path | None
    metrics: dict[str, Any]
    held_out: tuple[str, ...]
    config: BaselineConfig = field(repr=False)
    lvlm: LVLM = field(repr=False)


def tune(
    method: Method,
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
    """Tune a model by one method, with the data, order, budget and settings that `craft.adapt` would have.

    Args:
        method: of `craft.baselines`.
        model: a shipped model, a folder, a hub id, or a loaded LVLM (which is not changed).
        data, out, seed, max_steps, config, resume, overwrite, overrides: as for `craft.adapt`; the run
            folder is by default `runs/` and the names of data and method.

    Raises:
        ConfigError: a setting is unknown or impossible, `out` is taken, or the method is not for this kind of
            model.
        DataError, CheckpointError, TrainingError: as `craft.adapt`.

    Source: §4.2, §12.1.
    """
    settings = _settings(method, model, data, out, seed, max_steps, config, overrides)
    run, finished = run_folder(settings, resume, overwrite)
    opened = Model(model, settings, method.parts)
    if finished:
        record, lvlm = run.record, load_tuned(run.path, opened())
        held_out = tuple(record["held_out"])
        return BaselineResult(run.path, run.path / "tuned", record["metrics"], held_out, settings, lvlm)

    given = training_data(data, settings, opened)
    lvlm = opened()
    method.check(lvlm)
    base = {name: part_fingerprint(parts(lvlm)[name]) for name in method.parts}
    begin(run, settings, lvlm, given, resume, overwrite, method=method.name)
    steps = settings.steps(len(image_groups(given.train, settings.questions_per_image)))
    say(f"{method.name}: {lvlm.name} on {given.name}, {steps} steps of {settings.batch_size}")

    lesson, validate = method.lesson, validation(given, settings)
    with run.noting_failure():
        result = fit(lvlm, given.train, settings, run, lesson=lesson, resume=resume, validate=validate)
        factors = {}
        if "llm" in method.parts:
            factors = take_lora(lvlm.backbone.llm, merge=True)
            lvlm.backbone.borrowed = None  # the LLM is not the published one any more
        run.update(hashes_after=part_hashes(lvlm))
        metrics = run_metrics(run, result)
        manifest = {"method": method.name, **run_manifest(run, settings, metrics)}
        place = run.path / "tuned"
        told = {"base": base, "factors": factors, "manifest": manifest}
        on_main(lambda: save_tuned(place, lvlm, method.parts, **told))
        run.update(status="finished", metrics=metrics)
    return BaselineResult(run.path, place, metrics, given.held_out, settings, lvlm)


def rehearse_tuning(
    method: Method,
    model: str | Path | LVLM | None = None,
    data: str | Path | Data | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    config: Config = None,
    **overrides: Any,
) -> Rehearsal:
    """The dry run of `tune`: build, check the data, one batch forward and backward; nothing is written.

    Raises:
        CraftError: whatever `tune` with the same arguments would stumble over at its start.
    """
    settings = _settings(method, model, data, None, seed, max_steps, config, overrides)
    opened = Model(model, settings, method.parts)
    given = training_data(data, settings, opened)
    lvlm = opened()
    method.check(lvlm)
    return rehearse_step(lvlm, given.train, settings, method.lesson)


def load_tuned(out: str | Path, model: str | Path | LVLM | None = None, **where: Any) -> LVLM:
    """The tuned LVLM of a finished run of any baseline (or of `craft.adapt`).

    Args:
        out: the run folder.
        model: what was tuned; None is the model of the name that the run has.
        where: `device` and `dtype`, as for `craft.load`.

    Raises:
        CheckpointError: the run has not finished, or the model is not the one that was tuned.
        CodebookMismatchError: it has another codebook.
    """
    artefact = load_artefact(out)
    given = model if model is not None else str(artefact.surrogate)
    return (given if isinstance(given, LVLM) else load(given, **where)).with_encoder(artefact)


def _settings(
    method: Method, model: Any, data: Any, out: Any, seed: Any, max_steps: Any, config: Config, overrides: Any
) -> BaselineConfig:
    named = {**overrides, "method": method.name}
    return run_settings(
        BaselineConfig, model, data, out, seed, max_steps, config, named, suffix=f"-{method.name}"
    )
