"""`craft.adapt`: tune the vision tower of a surrogate LVLM to a domain, and write the adapted encoder.

Read `adapt` from top to bottom: it is the paper's method in one page.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from craft.core.processes import on_main, rank, total, world
from craft.core.progress import say
from craft.data import Data, Sample
from craft.formats.artefact import save_artefact
from craft.formats.encoder import load_artefact
from craft.lessons.adapt import adaptation
from craft.lessons.batches import image_groups
from craft.lessons.rehearsal import Rehearsal, rehearse_step
from craft.models.lvlm import LVLM
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize.usage import code_counts
from craft.recipes.arguments import DataSource, ModelSource
from craft.recipes.opening import (
    Config,
    Model,
    begin,
    open_run,
    run_folder,
    run_manifest,
    run_metrics,
    run_settings,
    validation,
)
from craft.training.config import AdaptConfig
from craft.training.fit import fit
from craft.training.image_cache import ImageCache, image_key
from craft.training.lesson import Settled
from craft.training.run_folder import RunFolder


@dataclass(frozen=True)
class AdaptResult:
    """A finished adaptation.

    Attributes:
        out: the run folder.
        encoder: the artefact in it; `with_encoder`, `evaluate` and `craft export` take either.
        metrics: steps, losses at the end, the selected step and its validation score if validation selects
            one, minutes, how many level-1 codes are in use (and were before, if the surrogate has a prior).
        prior: level-1 code counts int64 `[K]` of the training images under the adapted tower (§3.3).
        held_out: the classes that training never saw.
        config: every setting.
        lvlm: the surrogate with the adapted tower, ready to answer.
    """

    out: Path
    encoder: Path
    metrics: dict[str, Any]
    prior: Tensor = field(repr=False)
    held_out: tuple[str, ...]
    config: AdaptConfig = field(repr=False)
    lvlm: LVLM = field(repr=False)


def adapt(
    surrogate: str | Path | LVLM | None = None,
    data: str | Path | Data | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    config: Config = None,
    resume: bool = False,
    overwrite: bool = False,
    **overrides: Any,
) -> AdaptResult:
    """Adapt the vision tower of a discrete LVLM to a domain. Projector, LLM and codebook stay bit for bit.

    Args:
        surrogate: a shipped model, a folder, a hub id, or a loaded LVLM (which is not changed).
        data: an embedded domain, a benchmark, a folder of class folders, a table of questions, a folder of
            `craft data prepare`, or a `Data`.
        out: the run folder (default: `runs/` and the data's name).
        seed: of held-out classes, options, order, sampled texts.
        max_steps: optimiser steps; None leaves it to the config.
        config: a YAML file, dict or `AdaptConfig`; all other arguments override it.
        resume: continue the interrupted run in `out`; the result is that of an uninterrupted run.
        overwrite: replace the run in `out`.
        **overrides: any other setting by its last name (`learning_rate=1e-4`) or in full with `__` for the
            dot (`losses__commitment__weight=0.1`); also `**{"losses.commitment.weight": 0.1}`.

    Raises:
        ConfigError: a setting is unknown or impossible, or `out` is taken.
        DataError: the data is missing, empty, has a single class, or an image cannot be read.
        CheckpointError: the surrogate is missing or damaged.
        TrainingError: training went wrong (see `craft.training.fit`), or was interrupted (`Interrupted`).

    Source: §3.2, Eq. 2 to 5; §4.1.
    """
    overrides = {"seed": seed, "max_steps": max_steps, **overrides}
    settings = run_settings(AdaptConfig, surrogate, data, out, config, overrides)
    run, finished = run_folder(settings, resume, overwrite)
    if finished:
        return _finished(run, settings, surrogate)

    # 1. The surrogate, with a copy of its tower to train, and the data.
    lvlm, training_data = _open(surrogate, data, settings)
    base_prior = lvlm.visual.prior
    begin(run, settings, lvlm, training_data, resume, overwrite)
    say(_announcement(lvlm, training_data, settings))

    # 2. Training (Eq. 5).
    lesson = partial(adaptation, task=training_data.task, earlier=Settled.of(run.record))
    validate = validation(training_data, settings)
    with run.noting_failure():
        samples = training_data.train
        result = fit(lvlm, samples, settings, run, lesson=lesson, resume=resume, validate=validate)

        # 3. The artefact: tower, code prior under the adapted tower, manifest.
        assert result.images is not None
        prior = code_prior(lvlm.visual, samples, result.images)
        metrics = {
            **run_metrics(run, result),
            "codes_used": int((prior > 0).sum()),
            "codes_used_before": None if base_prior is None else int((base_prior > 0).sum()),
        }
        base = run.record["hashes_before"]["vision_tower"]
        manifest = run_manifest(run, settings, metrics, base_tower=base)
        encoder = on_main(lambda: save_artefact(run.encoder, lvlm.visual, prior=prior, manifest=manifest))
        run.update(status="finished", metrics=metrics)
    lvlm.visual.prior = prior
    return AdaptResult(run.path, encoder, metrics, prior, training_data.held_out, settings, lvlm)


def rehearse(
    surrogate: str | Path | LVLM | None = None,
    data: str | Path | Data | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    config: Config = None,
    **overrides: Any,
) -> Rehearsal:
    """The dry run of `adapt`: build, check the data, one batch forward and backward; nothing is written.

    Raises:
        CraftError: any error at the start of `adapt` with the same arguments.
    """
    overrides = {"seed": seed, "max_steps": max_steps, **overrides}
    settings = run_settings(AdaptConfig, surrogate, data, None, config, overrides)
    lvlm, training_data = _open(surrogate, data, settings)
    lesson = partial(adaptation, task=training_data.task)
    return rehearse_step(lvlm, training_data.train, settings, lesson)


def _open(surrogate: ModelSource | None, data: DataSource | None, settings: AdaptConfig) -> tuple[LVLM, Data]:
    """The surrogate, whose τ of Eq. 4 has its initial value if it trains, and the data."""
    lvlm, opened = open_run(data, settings, Model(surrogate, settings))
    lvlm.visual.need_codes("CRAFT's adaptation")
    start = settings.losses.contrastive.temperature
    if start is not None and settings.contrastive_weight(opened.task) > 0:
        lvlm.visual.log_temperature.data.fill_(math.log(start))
    return lvlm, opened


@torch.no_grad()
def code_prior(
    visual: VisualTokenizer, samples: list[Sample], images: ImageCache, batch_size: int = 64
) -> Tensor:
    """How often each level-1 code occurs in the distinct images of `samples`: int64 `[K]`. Source: §3.3.

    With several processes, each counts a part of the images.
    """
    distinct = list({image_key(sample.image): sample for sample in samples}.values())[rank() :: world()]
    counts = torch.zeros(visual.codebook.size, dtype=torch.long)
    tower: Any = visual.vision_tower
    for start in range(0, len(distinct), batch_size):
        values = images.get(distinct[start : start + batch_size]).to(visual.device)
        features, _ = (tower.after_stem if images.through_stem else tower)(values, with_cls=False)
        codes = visual.codebook.quantize(features.float()).codes
        counts += code_counts(codes, visual.codebook.size).cpu()
    return total(counts)


def _announcement(lvlm: LVLM, data: Data, settings: AdaptConfig) -> str:
    unseen = f", held out: {', '.join(data.held_out)}" if data.held_out else ""
    rows = image_groups(data.train, settings.questions_per_image)
    return (
        f"adapting the vision tower of {lvlm.name} to {data.name}: {len(data.train)} training samples"
        f"{unseen}; {settings.steps(len(rows))} steps of {settings.batch_size}"
    )


def _finished(run: RunFolder, settings: AdaptConfig, surrogate: ModelSource | None) -> AdaptResult:
    """The result of a run that finished earlier."""
    artefact = load_artefact(run.path)
    lvlm = Model(surrogate, settings)().with_encoder(artefact)
    held_out = tuple(run.record.get("held_out") or ())
    return AdaptResult(
        run.path, artefact.folder, run.record["metrics"], artefact.prior, held_out, settings, lvlm
    )
