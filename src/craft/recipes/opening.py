"""What a training run on labelled images opens before it trains, and what it records.

It opens settings, run folder, data, and the model with copies of the parts that train. It records the start,
the metrics and the manifest of the artefact.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from craft.core.device import resolve_device
from craft.core.errors import ConfigError
from craft.core.lock import check_unlocked
from craft.core.processes import on_main, world
from craft.core.progress import say
from craft.data import Data, verify_images
from craft.data.check import settle_overlap
from craft.data.load import short_name
from craft.evaluation.config import EvalConfig
from craft.evaluation.lengths import announce_long_answers, check_questions
from craft.evaluation.run import evaluate_lvlm
from craft.formats.load import load
from craft.lessons.recipe import departures, recipe_line
from craft.models.backbone import Backbone
from craft.models.llm_bits import bits_of, check_bits
from craft.models.lvlm import LVLM
from craft.models.visual_tokenizer import VisualTokenizer
from craft.recipes.arguments import DataSource, ModelSource, data_name, model_name, without_none
from craft.recipes.questions import describe, open_data, take
from craft.training.config import AdaptConfig, LoopConfig
from craft.training.engine import join_processes, loading_device, sharding_requested
from craft.training.fit import FitResult
from craft.training.lesson import Settled
from craft.training.order import micro_batches
from craft.training.run_folder import RunFolder

OPTIONAL = ("seed", "max_steps")
"""Arguments of `craft.adapt` that leave the decision to the config if they are None."""

Config = AdaptConfig | Mapping[str, Any] | str | Path | None
C = TypeVar("C", bound=AdaptConfig)


def run_settings(
    kind: type[C],
    model: ModelSource | None,
    data: DataSource | None,
    out: str | Path | None,
    config: Config,
    overrides: Mapping[str, Any],
    suffix: str = "",
) -> C:
    """The config, with the arguments of `craft.adapt` on top of it.

    Args:
        kind: the class of the config.
        model, data, out, config: as for `craft.adapt`.
        overrides: all other arguments. If seed and max_steps are None, the config decides.
        suffix: follows the data's name in the default run folder.

    Raises:
        ConfigError: a setting is unknown or impossible.
    """
    named = {"surrogate": model_name(model), "data.name": data_name(data), "out": out and str(out)}
    settings = kind.build(config, {**without_none(named), **without_none(overrides, OPTIONAL)})
    if settings.out is None:
        folder = Path("runs") / f"{short_name(settings.data.name)}{suffix}"
        settings = settings.model_copy(update={"out": str(folder)})
    return settings


def run_folder(settings: LoopConfig, resume: bool, overwrite: bool) -> tuple[RunFolder, bool]:
    """The run's folder, and whether it holds the finished run of these settings. Nothing is written.

    A caller that goes on to train does so within `RunFolder.held`.

    Raises:
        ConfigError: the folder is in use, the run to resume had other settings, or a batch cannot be divided
            among the processes.
    """
    join_processes(settings.device)
    if settings.max_steps is not None and settings.epochs != LoopConfig().epochs:
        say(
            f"note: epochs={settings.epochs:g} is ignored because max_steps={settings.max_steps} is set; "
            "--set max_steps=null trains for epochs"
        )
    size = settings.micro_batch if isinstance(settings.micro_batch, int) else None
    micro_batches(list(range(settings.batch_size)), 0, world(), size)
    run = RunFolder(str(settings.out))
    on_main(lambda: check_unlocked(run.path))
    finished = run.check(settings, resume, overwrite) and run.finished
    if finished:
        say(f"the run in {run.path} is already finished")
    return run, finished


def run_data(data: DataSource | None, settings: AdaptConfig, model: "Model") -> Data:
    """The data if it is loaded already, otherwise the data that the settings name.

    Raises:
        DataError: it is missing or broken.
    """
    if not isinstance(data, Data):
        return open_data(settings.data, settings.seed, model)
    return settle_overlap(data, "drop") if settings.data.overlap == "drop" else data


def open_run(data: DataSource | None, settings: AdaptConfig, model: "Model") -> tuple[LVLM, Data]:
    """The model and the data of a run. CRAFT opens every image once before it loads the model.

    Raises:
        DataError: the data is missing, empty or broken, training images stand in the test split too, or a
            question with its answer is longer than the LLM's context.
        ConfigError: eval_every is set, and there are no validation samples.
        CheckpointError: the model is missing or damaged.
    """
    opened = run_data(data, settings, model)
    opened.samples("train")
    verify_images(opened, overlap=settings.data.overlap)
    for caveat in opened.caveats:
        say(f"note: {opened.name}: {caveat}")
    if settings.eval_every and not opened.validation:
        raise ConfigError(f"eval_every needs validation samples, and {opened.name} has none; unset it.")
    lvlm = model()
    check_questions(lvlm, [*opened.train, *opened.validation])
    announce_long_answers(lvlm, opened.test, EvalConfig().max_new_tokens, later=True)
    return lvlm, opened


def validation(data: Data, settings: AdaptConfig) -> Callable[[LVLM], float] | None:
    """The score by which `fit` selects a step: accuracy on the validation samples; None without samples."""
    samples = take(data.validation, settings.eval_limit, settings.seed)
    return (lambda lvlm: evaluate_lvlm(lvlm, samples, progress=False).accuracy) if samples else None


class Model:
    """The model of a run, loaded at the first call.

    CRAFT copies those parts of a loaded LVLM that train, and all parts if it moves to another device.

    Args:
        source: an LVLM; anything else means the model that the settings name.
        settings: model, device, dtype and llm_bits are used.
        parts: the parts that will change, of `vision_tower`, `projector`, `llm`.

    Raises:
        ConfigError: the settings ask for an LLM in 4 or 8 bits, which is not possible here.
    """

    def __init__(
        self, source: ModelSource | None, settings: AdaptConfig, parts: Collection[str] = ("vision_tower",)
    ) -> None:
        self.source = source
        self.settings = settings
        self.parts = parts
        self.lvlm: LVLM | None = None
        _check_bits(source, settings, parts)

    def __call__(self) -> LVLM:
        """The LVLM.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        if self.lvlm is None:
            source = self.source
            if isinstance(source, LVLM):
                device, current = resolve_device(self.settings.device), source.device
                moves = device.type != current.type or device.index not in (None, current.index)
                self.lvlm = copy.deepcopy(source) if moves else with_copies(source, self.parts)
            else:
                device, bits = loading_device(self.settings.device), self.settings.llm_bits
                self.lvlm = load(self.settings.surrogate, device, self.settings.dtype, llm_bits=bits)
        return self.lvlm


def _check_bits(source: ModelSource | None, settings: AdaptConfig, parts: Collection[str]) -> None:
    bits = settings.llm_bits
    if isinstance(source, LVLM):
        current = bits_of(source.backbone.llm)
        if bits not in (None, current):
            raise ConfigError(
                f"llm_bits={bits} is for a model that is loaded by name, and this one is loaded already; "
                f"use craft.load(..., llm_bits={bits})."
            )
        bits = current
    elif bits is not None:
        check_bits(bits, resolve_device(settings.device))
    if bits is None:
        return
    if "llm" in parts:
        raise ConfigError(f"llm_bits={bits} needs a frozen LLM, and this run trains it; leave llm_bits out.")
    if sharding_requested():
        raise ConfigError(
            f"llm_bits={bits} is not offered with FSDP2, which takes weights apart; use DDP "
            "(configs/ddp.yaml), or leave llm_bits out."
        )


def with_copies(lvlm: LVLM, parts: Collection[str]) -> LVLM:
    """The same LVLM with copies of the named parts and of τ, which can then be trained."""
    visual, backbone = lvlm.visual, lvlm.backbone

    def copied(name: str, part: Any) -> Any:
        return copy.deepcopy(part) if name in parts else part

    tokenizer = VisualTokenizer(
        copied("vision_tower", visual.vision_tower),
        visual.codebook,
        visual.text_encoder,
        visual.log_temperature.detach(),
        visual.prior,
        visual.aspect,
    )
    if {"projector", "llm"} & set(parts):
        backbone = Backbone(
            copied("projector", backbone.reader),
            copied("llm", backbone.llm),
            backbone.tokenizer,
            backbone.prompt,
            backbone.codebook_fingerprint,
            backbone.borrowed,
        )
    return LVLM(tokenizer.to(lvlm.device), backbone, lvlm.name, lvlm.origin)


# What the run records


def begin(
    run: RunFolder,
    settings: AdaptConfig,
    lvlm: LVLM,
    data: Data,
    resume: bool,
    overwrite: bool,
    **facts: Any,
) -> None:
    """Open the run folder, and record model, data and departures from the paper's recipe in `run.json`.

    `resume` and `overwrite` are as for `RunFolder.open`; `facts` are further fields.

    Raises:
        ConfigError: the run to resume began with other data.
    """
    run.open(settings, resume, overwrite)
    if run.record.get("data_fingerprint", data.fingerprint) != data.fingerprint:
        raise ConfigError(f"{data.name} is not the data that the run in {run.path} began with; restore it.")
    run.update(data=describe(data, settings.data), data_fingerprint=data.fingerprint, **facts)
    run.update(held_out=list(data.held_out), seed=settings.seed, surrogate=lvlm.name)
    departing = departures(settings, data, Settled.of(run.record))
    run.update(departures=departing)
    say(recipe_line(departing, settings.preset))


def run_metrics(run: RunFolder, result: FitResult) -> dict[str, Any]:
    """The metrics for the manifest: steps, last losses, best step, blend, minutes, and the weight of the
    retention loss (None for a baseline)."""
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
    """What the artefact records about its run; `facts` are further fields. `begin` recorded the rest."""
    return {
        "surrogate": run.record["surrogate"],
        **facts,
        "data": run.record["data"],
        "held_out": run.record["held_out"],
        "config": settings.model_dump(mode="json"),
        "departures": run.record["departures"],
        "metrics": metrics,
        "seed": settings.seed,
        "made_with": run.record["machine"],
    }
