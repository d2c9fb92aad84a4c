"""`craft baseline`: tune a model by a method that CRAFT is compared with (§4.2, §12.1).

The recipe is that of `craft.adapt` with another lesson, and it saves other parts. `METHODS` has one function
for each method.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError
from craft.core.processes import on_main
from craft.core.progress import say
from craft.data import Data
from craft.formats.load import load_artefact
from craft.formats.tuned import part_fingerprint, save_tuned
from craft.lessons.baselines import BASELINES, Baseline
from craft.lessons.batches import image_groups
from craft.lessons.rehearsal import Rehearsal, rehearse_step
from craft.models.freezing import part_hashes, parts
from craft.models.lvlm import LVLM
from craft.recipes.adapt import AdaptResult, adapt
from craft.recipes.adapt import rehearse as rehearse_adapt
from craft.recipes.arguments import DataSource, ModelSource, loaded, surrogate_of
from craft.recipes.opening import (
    Config,
    Model,
    begin,
    open_run,
    run_data,
    run_folder,
    run_manifest,
    run_metrics,
    run_settings,
    validation,
)
from craft.training.config import BaselineConfig
from craft.training.fit import fit
from craft.training.lesson import Settled
from craft.training.lora import take_lora
from craft.training.run_folder import RunFolder


@dataclass(frozen=True)
class BaselineResult:
    """A tuned LVLM.

    Attributes:
        out: the run folder; None for zero-shot.
        tuned: the folder of the tuned parts in it; `with_encoder`, `craft.evaluate` and `load_tuned` take
            either.
        metrics: steps, losses at the end, the step whose weights were kept and its validation score (if
            validation chose), minutes.
        held_out: the classes that were held out of training.
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
    method: str,
    model: str | Path | LVLM | None = None,
    data: str | Path | Data | None = None,
    out: str | Path | None = None,
    *,
    config: Config = None,
    resume: bool = False,
    overwrite: bool = False,
    **overrides: Any,
) -> BaselineResult | AdaptResult:
    """Tune a model by one method, with the data, order, budget and settings of `craft.adapt`.

    Args:
        method: a key of `METHODS`. zero-shot trains and writes nothing; its result is the unchanged model,
            with the classes that the other methods hold out. vision-ft-codebook is `craft.adapt` with the
            autoregressive loss alone, and its result is an adapted encoder.
        model: a shipped model, a folder, a hub id, or a loaded LVLM (which is not changed).
        data: as for `craft.adapt`.
        out: the run folder (default: `runs/` and the names of data and method).
        config, resume, overwrite: as for `craft.adapt`.
        **overrides: any other setting, as for `craft.adapt`: `seed=1`, `max_steps=100`, `lora__rank=4`.

    Raises:
        ConfigError: there is no such method, a setting is unknown or impossible, `out` is in use, or the
            method does not apply to this kind of model.
        DataError, CheckpointError, TrainingError: as for `craft.adapt`.

    Source: §4.2, §12.1.
    """
    baseline = find_baseline(method)
    settings = _settings(baseline, model, data, out, config, overrides)
    if not baseline.parts:
        return _zero_shot(settings, model, data)
    if baseline.make_lesson is None:
        return adapt(model, data, config=settings, resume=resume, overwrite=overwrite)
    run, finished = run_folder(settings, resume, overwrite)
    source = Model(model, settings, baseline.parts)
    if finished:
        return _finished(run, settings, source())

    with run.held():
        # 1. Data, model, and the fingerprints of the parts that train.
        lvlm, dataset = open_run(data, settings, source)
        baseline.check(lvlm)
        base = {name: part_fingerprint(parts(lvlm)[name]) for name in baseline.parts}
        begin(run, settings, lvlm, dataset, resume, overwrite, method=method)
        steps = settings.steps(len(image_groups(dataset.train, settings.questions_per_image)))
        say(f"{method}: {lvlm.name} on {dataset.name}, {steps} steps of {settings.batch_size}")

        # 2. Training, and the tuned parts.
        make_lesson = partial(baseline.make_lesson, earlier=Settled.of(run.record))
        validate = validation(dataset, settings)
        with run.recording_failure():
            result = fit(
                lvlm, dataset.train, settings, run, make_lesson=make_lesson, resume=resume, validate=validate
            )
            factors = {}
            if "llm" in baseline.parts:
                factors = take_lora(lvlm.backbone.llm, merge=True)
                lvlm.backbone.borrowed = None  # the LLM is no longer the published one
            run.update(hashes_after=part_hashes(lvlm))
            metrics = run_metrics(run, result)
            manifest = {"method": method, **run_manifest(run, settings, metrics)}
            tuned = run.path / "tuned"
            on_main(
                lambda: save_tuned(tuned, lvlm, baseline.parts, base=base, factors=factors, manifest=manifest)
            )
            run.update(status="finished", metrics=metrics)
        return BaselineResult(run.path, tuned, metrics, dataset.held_out, settings, lvlm)


METHODS: dict[str, Callable[..., Any]] = {name: partial(tune, name) for name in BASELINES}
"""`tune` for each method: `METHODS["vision-ft"](model, data, out, seed=0, **settings)`."""


def rehearse(
    method: str,
    model: str | Path | LVLM | None = None,
    data: str | Path | Data | None = None,
    *,
    config: Config = None,
    **overrides: Any,
) -> Rehearsal:
    """The dry run of `tune`: check the data, load the model, one batch forward and backward. Writes nothing.

    Args:
        method, model, data, config, **overrides: as for `tune`.

    Raises:
        CraftError: any error at the start of `tune` with the same arguments, or the method is zero-shot.
    """
    baseline = find_baseline(method, trains=True)
    settings = _settings(baseline, model, data, None, config, overrides)
    if baseline.make_lesson is None:
        return rehearse_adapt(model, data, config=settings)
    lvlm, dataset = open_run(data, settings, Model(model, settings, baseline.parts))
    baseline.check(lvlm)
    return rehearse_step(lvlm, dataset.train, settings, baseline.make_lesson)


def load_tuned(out: str | Path, model: str | Path | LVLM | None = None, **options: Any) -> LVLM:
    """The tuned LVLM of a finished run of any baseline (or of `craft.adapt`).

    Args:
        out: the run folder.
        model: the model that was tuned; None loads the model that the run names, if it is a shipped
            one or a folder.
        **options: `device` and `dtype`, as for `craft.load`.

    Raises:
        CheckpointError: the run has not finished, or the model is not the one that was tuned.
        ConfigError: no model is named, and the tuned one would have to be downloaded.
        CodebookMismatchError: it has another codebook.
    """
    artefact = load_artefact(out)
    named = surrogate_of(artefact, "model =", folders=True) if model is None else model
    return loaded(named, **options).with_encoder(artefact)


def find_baseline(method: str, *, trains: bool = False) -> Baseline:
    """The baseline of that name; with `trains`, zero-shot is refused too.

    Raises:
        ConfigError: there is no such baseline.
    """
    trainable = [name for name, baseline in BASELINES.items() if baseline.parts]
    if method not in (trainable if trains else BASELINES):
        raise ConfigError(
            f"There is no method {method!r} to tune by; use one of {', '.join(trainable)}. Zero-shot is "
            "`craft eval MODEL`."
        )
    return BASELINES[method]


def _settings(
    baseline: Baseline,
    model: ModelSource | None,
    data: DataSource | None,
    out: str | Path | None,
    config: Config,
    overrides: Mapping[str, Any],
) -> Any:
    """The config, overridden by the arguments of `tune`, and these by the settings that define the method."""
    overrides = {**overrides, **(baseline.settings or {"method": baseline.name})}
    suffix = f"-{baseline.name}"
    return run_settings(baseline.config_class, model, data, out, config, overrides, suffix)


def _zero_shot(
    settings: BaselineConfig, model: ModelSource | None, data: DataSource | None
) -> BaselineResult:
    """The unchanged model, with the classes that the other methods hold out with this seed."""
    settings = settings.model_copy(update={"out": None})
    source = Model(model, settings, parts=())
    held_out = run_data(data, settings, source).held_out
    return BaselineResult(None, None, {"steps": 0}, held_out, settings, source())


def _finished(run: RunFolder, settings: BaselineConfig, lvlm: LVLM) -> BaselineResult:
    """The result of a run that finished earlier."""
    record = run.record
    held_out, tuned = tuple(record["held_out"]), load_tuned(run.path, lvlm)
    return BaselineResult(run.path, run.path / "tuned", record["metrics"], held_out, settings, tuned)
