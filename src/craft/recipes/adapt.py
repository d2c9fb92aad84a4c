"""`craft.adapt`: adapt the vision tower of a surrogate LVLM to a domain, and write the adapted encoder.

`adapt` is the paper's method on one page; read it from top to bottom. The loss of a batch (Eq. 5) is
`craft.lessons.objective.CraftObjective`.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from craft.core.processes import on_main, rank, total, world
from craft.core.progress import say
from craft.data import Data, Sample
from craft.evaluation.calibration import fit_temperature
from craft.evaluation.run import evaluate_lvlm
from craft.formats.artefact import save_artefact
from craft.formats.load import load_artefact
from craft.lessons.adapt import adaptation
from craft.lessons.batches import image_groups
from craft.lessons.rehearsal import Rehearsal, rehearse_step
from craft.lessons.table_rule import check_table_rule
from craft.models.lvlm import LVLM
from craft.models.vision_tower import VisionTower, forward_of
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import code_counts
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
from craft.recipes.questions import take
from craft.serving.routing import typical_score
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
        encoder: the artefact in it; `with_encoder`, `evaluate` and `craft export` accept either path.
        metrics: steps, last losses, the best step and its validation score (if validation chose it), minutes,
            and how many level-1 codes the adapted and the base tower use on the same `codes_images` training
            images (`codes_used`, `codes_used_before`).
        prior: level-1 code counts int64 `[K]` of the training images under the adapted tower (§3.3).
        held_out: the classes that were held out of training.
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
    """Adapt the vision tower of a discrete LVLM to a domain. Projector, LLM and codebook do not change.

    Args:
        surrogate: a shipped model, a folder, a hub id, or a loaded LVLM (which is not changed).
        data: an embedded domain, a benchmark, a folder of class folders, a table of questions, a folder of
            `craft data prepare`, or a `Data`.
        out: the run folder (default: `runs/` and the data's name).
        seed: the seed of held-out classes, options, order, sampled texts and everything else random.
        max_steps: optimiser steps; with None the config decides.
        config: a YAML file, dict or `AdaptConfig`; all other arguments override it.
        resume: continue the interrupted run in `out`; the result is that of an uninterrupted run.
        overwrite: replace the run in `out`.
        **overrides: any other setting by its last name (`learning_rate=1e-4`) or its full name with `__` for
            the dot (`losses__commitment__weight=0.1`); also `**{"losses.commitment.weight": 0.1}`.

    Raises:
        ConfigError: a setting is unknown or impossible, or `out` is in use.
        DataError: the data is missing, empty, has a single class, or an image cannot be read.
        CheckpointError: the surrogate is missing or damaged.
        TrainingError: training failed (see `craft.training.fit.fit`), or was interrupted (`Interrupted`).

    Source: §3.2, Eq. 2 to 5; §4.1.
    """
    overrides = {"seed": seed, "max_steps": max_steps, **overrides}
    settings = run_settings(AdaptConfig, surrogate, data, out, config, overrides)
    run, finished = run_folder(settings, resume, overwrite)
    if finished:
        return _finished(run, settings, surrogate)

    with run.held():
        # 1. The data, without the held-out classes, and the surrogate, with a copy of its tower to train.
        lvlm, dataset = _open(surrogate, data, settings)
        base = copy.deepcopy(lvlm.visual.vision_tower).cpu()
        begin(run, settings, lvlm, dataset, resume, overwrite)
        say(_announcement(lvlm, dataset, settings))

        # 2. Training: the tower learns by Eq. 5, and the frozen LLM scores the answers (Eq. 2).
        make_lesson = partial(adaptation, task=dataset.task, earlier=Settled.of(run.record))
        with run.recording_failure():
            result = fit(
                lvlm,
                dataset.train,
                settings,
                run,
                make_lesson=make_lesson,
                resume=resume,
                validate=validation(dataset, settings),
            )

            # 3. The artefact: the adapted tower, its code prior (§3.3), and a manifest.
            assert result.images is not None
            prior, before, typical = code_prior(lvlm.visual, base, dataset.train, result.images)
            metrics = {
                **run_metrics(run, result),
                "codes_used": int((prior > 0).sum()),
                "codes_used_before": int((before[0] > 0).sum()),
                "codes_images": len(_distinct(dataset.train)),
            }
            base_hash = run.record["hashes_before"]["vision_tower"]
            calibration = calibrate(lvlm, take(dataset.validation, settings.eval_limit, settings.seed))
            routing = {"typical_score": typical}
            manifest = run_manifest(run, settings, metrics, base_tower=base_hash, **routing, **calibration)
            encoder = on_main(
                lambda: save_artefact(
                    run.encoder, lvlm.visual, prior=prior, base_counts=before, manifest=manifest
                )
            )
            run.update(status="finished", metrics=metrics)
        lvlm.visual.prior = prior
        return AdaptResult(run.path, encoder, metrics, prior, dataset.held_out, settings, lvlm)


def rehearse(
    surrogate: str | Path | LVLM | None = None,
    data: str | Path | Data | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    config: Config = None,
    **overrides: Any,
) -> Rehearsal:
    """The dry run of `adapt`: check the data, load the model, one batch forward and backward. Writes nothing.

    Args:
        surrogate, data, seed, max_steps, config, **overrides: as for `adapt`.

    Raises:
        CraftError: any error at the start of `adapt` with the same arguments.
    """
    overrides = {"seed": seed, "max_steps": max_steps, **overrides}
    settings = run_settings(AdaptConfig, surrogate, data, None, config, overrides)
    lvlm, dataset = _open(surrogate, data, settings)
    return rehearse_step(lvlm, dataset.train, settings, partial(adaptation, task=dataset.task))


def _open(surrogate: ModelSource | None, data: DataSource | None, settings: AdaptConfig) -> tuple[LVLM, Data]:
    """The surrogate, whose τ of Eq. 4 gets its initial value if it trains, and the data."""
    lvlm, dataset = open_run(data, settings, Model(surrogate, settings))
    codebook = lvlm.visual.need_codes("CRAFT's adaptation")
    check_table_rule(lvlm.backbone, codebook, settings.losses)
    temperature = settings.losses.contrastive.temperature
    if temperature is not None and settings.contrastive_weight(dataset.task) > 0:
        lvlm.visual.log_temperature.data.fill_(math.log(temperature))
    return lvlm, dataset


@torch.no_grad()
def code_prior(
    visual: VisualTokenizer,
    base: VisionTower,
    samples: list[Sample],
    images: ImageCache,
    batch_size: int = 64,
) -> tuple[Tensor, Tensor, float]:
    """The code counts of the distinct images of `samples`: of level 1 under the current tower, int64 `[K]`,
    and of all levels under the base tower, int64 `[L, K]`; and the images' `typical_score`.

    With several processes, each counts a part of the images; the score is that of the main process's part.

    Args:
        visual: the visual tokenizer with the current tower.
        base: a copy of its tower from before training; it moves to the same device and becomes float32.
        samples: the training set.
        images: the cache that decodes its images.
        batch_size: images per pass of the tower.

    Source: p_dom of §3.3, before normalisation; the base tower's part is ours, for `craft serve`.
    """
    distinct = _distinct(samples)[rank() :: world()]
    base = base.to(visual.device).float()
    current = torch.zeros(1, visual.codebook.size, dtype=torch.long)
    before = torch.zeros(visual.codebook.num_levels, visual.codebook.size, dtype=torch.long)
    base_codes: list[Tensor] = []
    for start in range(0, len(distinct), batch_size):
        batch = images.get(distinct[start : start + batch_size]).to(visual.device)
        for counts, tower in ((current, visual.vision_tower), (before, base)):
            features, _ = forward_of(tower, images.through_stem)(batch, with_cls=False)
            codes = visual.codebook.quantize(features.float()).codes
            for level, row in enumerate(counts):
                row += code_counts(codes[..., level:], visual.codebook.size).cpu()
            if counts is before:
                base_codes += codes.cpu()
    before = total(before)
    return total(current)[0], before, typical_score(base_codes, before)


def calibrate(lvlm: LVLM, samples: Sequence[Sample]) -> dict[str, Any]:
    """The temperature that makes probabilities of options fit their accuracy, and how well it does so. Ours.

    Args:
        lvlm: with the adapted tower.
        samples: of the validation split: images that did not train, of seen classes only.

    Returns:
        Entries of the manifest: `answer_temperature`, and `calibration` with the expected calibration error
        and the negative log-likelihood before and after. Nothing without questions that have options.
    """
    asked = [sample for sample in samples if sample.choices]
    if not asked:
        return {}
    report = evaluate_lvlm(lvlm, asked, protocol="options", progress=False)
    temperature = fit_temperature(*report.scores_and_right())
    return {"answer_temperature": temperature, "calibration": report.calibration(temperature)}


def _distinct(samples: list[Sample]) -> list[Sample]:
    """One sample for each image."""
    return list({image_key(sample.image): sample for sample in samples}.values())


def _announcement(lvlm: LVLM, data: Data, settings: AdaptConfig) -> str:
    """The line that CRAFT prints before training."""
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
