"""`craft.align`: make an LLM a backbone of an existing codebook, in the two stages of §8.

Read `align` from top to bottom. The visual tokenizer is frozen and, once its codes are cached, not even run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from craft.core.device import autocast, resolve_device, resolve_dtype
from craft.core.errors import CheckpointError, ConfigError
from craft.core.files import atomic_write_text, load_tensors, read_json, user_path
from craft.core.processes import on_main
from craft.core.progress import say
from craft.core.seeding import generator
from craft.evaluation.language import check_language
from craft.formats.code_cache import ImageCodes
from craft.formats.llm_source import Borrowed, open_llm
from craft.formats.load import load, load_visual_tokenizer
from craft.formats.native import save_native
from craft.lessons.align import Row, alignment
from craft.lessons.rehearsal import Rehearsal, rehearse_alignment, rehearse_sizes
from craft.models import paper_sizes
from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.models.projector import Projector
from craft.models.visual_tokenizer import VisualTokenizer
from craft.models.weights import load_strict
from craft.recipes.align_card import backbone_card
from craft.recipes.align_data import (
    Source,
    check_turns,
    encode_sets,
    leave_out_cut_off,
    read_sets,
    rows_fingerprint,
    source_names,
    stage_rows,
)
from craft.recipes.opening import run_folder
from craft.training.config import AlignConfig
from craft.training.engine import loading_device
from craft.training.fit import fit
from craft.training.lesson import Lesson
from craft.training.lora import check_factors, lora_targets, need_peft, take_lora
from craft.training.run_folder import RunFolder

BACKBONE = "backbone"
"""The folder of the result within the run folder, which is a family of its own: `visual/` and this."""


@dataclass(frozen=True)
class AlignResult:
    """A finished alignment.

    Attributes:
        out: the run folder; `craft.load` takes it.
        backbone: the backbone's folder in it.
        metrics: of each stage ("1", "2"): steps, rows, minutes, first and last loss.
        language: perplexity and answers of the LLM without images, "before" and "after".
        config: every setting.
        lvlm: the model, ready to answer.
    """

    out: Path
    backbone: Path
    metrics: dict[str, dict[str, Any]]
    language: dict[str, Any]
    config: AlignConfig = field(repr=False)
    lvlm: LVLM = field(repr=False)


def align(
    llm: str | Path | None = None,
    visual: str | Path | VisualTokenizer | None = None,
    data: Source = None,
    stage: str | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    config: AlignConfig | Mapping[str, Any] | str | Path | None = None,
    captions: Source = None,
    text: Source = None,
    codes: ImageCodes | str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **overrides: Any,
) -> AlignResult:
    """Train a projector, and the LLM if asked, to read a codebook. The visual tokenizer stays bit for bit.

    Args:
        llm: a folder, a GGUF file, a hub id, a shipped backbone (its LLM), or a name such as "smollm2".
        visual: a shipped family ("craft-tiny"), a folder, a hub id, or a loaded visual tokenizer.
        data: files of conversations, embedded domains, or conversations (`craft.data.chats`).
        stage: "1" trains the projector, "2" projector and LLM, "both" one after the other.
        out: the run folder (default: `runs/align-` and the LLM's name).
        seed: of order, fresh weights and all else that is drawn by lot.
        max_steps: optimiser steps of each stage; None is one pass over its rows.
        config: a YAML file, dict or `AlignConfig`; what is given besides goes before it.
        captions: what stage 1 is trained on instead of `data`.
        text: conversations without images, mixed into stage 2.
        codes: codes that are at hand; the conversations' images are then rows of it (ints). Or the setting
            of that name: a folder.
        resume: continue the interrupted run in `out`; the result is that of an unbroken run.
        overwrite: replace the run in `out`.
        **overrides: any other setting, as for `craft.adapt`.

    Raises:
        ConfigError: a setting is unknown or impossible, or `out` is taken.
        DataError: the data is missing or broken, or all of it is cut off at `max_length`.
        CheckpointError: LLM or visual tokenizer are missing or damaged.
        TrainingError: training went wrong, or was interrupted (`Interrupted`).

    Source: §8.
    """
    if isinstance(codes, str | Path):
        overrides, codes = {**overrides, "codes": str(codes)}, None
    settings = _settings(llm, visual, data, stage, out, seed, max_steps, config, captions, text, overrides)
    if settings.llm in paper_sizes.LLMS:
        raise ConfigError(
            f"{settings.llm} is a size without weights, for --dry-run; give an LLM's folder or hub id."
        )
    run, finished = run_folder(settings, resume, overwrite)
    if finished:
        return _finished(run, settings)

    # 1. The conversations, and the LLM that is to read the codes.
    sets = read_sets(settings, data, captions, text)
    tokenizer = _visual(settings, visual)
    lvlm = _lvlm(settings, tokenizer)  # a wrong name shows before the hours of encoding
    check_turns(sets, lvlm)
    sets = leave_out_cut_off(sets, lvlm, settings)

    # 2. The codes of all images: the vision tower runs once per image, ever. What the LLM says so far.
    sets, codes = encode_sets(sets, tokenizer, settings, codes)
    stages = stage_rows(settings, sets, lvlm)
    run.open(settings, resume, overwrite)
    fingerprint = rows_fingerprint(stages, codes)
    if run.record.get("data_fingerprint", fingerprint) != fingerprint:
        raise ConfigError(f"The data is not what the run in {run.path} began with; restore it.")
    counts = {name: len(rows) for name, rows in stages.items()}
    known = {"codebook": tokenizer.codebook.fingerprint, "rows": counts}
    run.update(status="running", data_fingerprint=fingerprint, **known)
    before = _language(lvlm, settings, run.record.get("language_before"))
    run.update(language_before=before)

    with run.noting_failure():
        # 3. Stage 1: projector. Stage 2: projector and LLM.
        metrics = {
            name: _train(lvlm, rows, settings, run, int(name), codes, resume) for name, rows in stages.items()
        }

        # 4. The backbone: LoRA merged or apart, language again, model card.
        factors = take_lora(lvlm.backbone.llm, merge=True)
        after = _language(lvlm, settings, None)
        as_it_was = (settings.stage == "1" or settings.lora.rank > 0) and not settings.fresh
        if as_it_was and not settings.lora.merge:
            half = {name: value.to(torch.bfloat16) for name, value in factors.items()}
            lvlm.backbone.borrowed = Borrowed(_lasting(settings.llm), half)
        folder = on_main(lambda: save_native(run.path, BACKBONE, _unrounded(lvlm, settings, visual)))
        language = {"before": before, "after": after}
        card = backbone_card(settings, lvlm, metrics, language, counts)
        on_main(lambda: atomic_write_text(folder / "README.md", card))
        run.update(status="finished", metrics=metrics, language=language)
    return AlignResult(run.path, folder, metrics, language, settings, lvlm)


def rehearse(
    llm: str | Path | None = None,
    visual: str | Path | None = None,
    data: Source = None,
    stage: str | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    config: AlignConfig | Mapping[str, Any] | str | Path | None = None,
    captions: Source = None,
    text: Source = None,
    **overrides: Any,
) -> dict[str, Rehearsal]:
    """The dry run of `align`: one batch of each stage forward and backward; only codes are written.

    For an LLM of `craft.models.paper_sizes` on `paper/vila-u` the sizes of §8, without weights or data.

    Raises:
        CraftError: whatever `align` with the same arguments would stumble over at its start.
    """
    settings = _settings(llm, visual, data, stage, out, seed, max_steps, config, captions, text, overrides)
    if settings.llm in paper_sizes.LLMS:
        if settings.visual != paper_sizes.VISUAL:
            raise ConfigError(
                f"{settings.llm} is a size without weights; --visual {paper_sizes.VISUAL} fits it."
            )
        return {
            name: rehearse_sizes(paper_sizes.paper_lvlm(settings.llm), settings, int(name), count)
            for name, count in paper_sizes.DATA.items()
            if settings.stage in (name, "both")
        }
    sets = read_sets(settings, data, captions, text)
    tokenizer = _visual(settings, visual)
    lvlm = _lvlm(settings, tokenizer)
    check_turns(sets, lvlm)
    sets = leave_out_cut_off(sets, lvlm, settings)
    sets, codes = encode_sets(sets, tokenizer, settings)
    return {
        name: rehearse_alignment(lvlm, rows, settings, _lesson(lvlm, settings, int(name), codes))
        for name, rows in stage_rows(settings, sets, lvlm).items()
    }


def _settings(
    llm: str | Path | None,
    visual: str | Path | VisualTokenizer | None,
    data: Source,
    stage: str | None,
    out: str | Path | None,
    seed: int | None,
    max_steps: int | None,
    config: Any,
    captions: Source,
    text: Source,
    overrides: Mapping[str, Any],
) -> AlignConfig:
    """The config, with the arguments of `align` on top of it."""
    named = {
        "llm": llm and str(llm),
        "visual": None if isinstance(visual, VisualTokenizer) else visual and str(visual),
        "stage": stage and str(stage),
        "out": out and str(out),
        "seed": seed,
        "max_steps": max_steps,
        "data": source_names(data),
        "captions": source_names(captions),
        "text": source_names(text),
    }
    given = {key: value for key, value in named.items() if value is not None}
    settings = AlignConfig.build(config, {**given, **overrides})
    if not settings.llm:
        raise ConfigError("Which LLM? Give a folder, a GGUF file, a hub id or a shipped backbone.")
    if settings.eval_every is not None:
        raise ConfigError("eval_every chooses by validation samples, and an alignment has none; unset it.")
    if _with_lora(settings):
        need_peft()
    if settings.out is None:
        settings = settings.model_copy(update={"out": str(Path("runs") / f"align-{_short(settings.llm)}")})
    return settings


def _short(llm: str) -> str:
    """The last part of an LLM's name; the dot in "Qwen2-0.5B" begins no suffix."""
    return Path(llm).name.removesuffix(".gguf")


def _with_lora(settings: AlignConfig) -> bool:
    return settings.lora.rank > 0 and settings.stage != "1"


def _visual(settings: AlignConfig, given: Any) -> VisualTokenizer:
    if not isinstance(given, VisualTokenizer):
        given = load_visual_tokenizer(settings.visual, settings.device, settings.dtype)
    given.need_codes("Aligning an LLM")
    return given


def _unrounded(lvlm: LVLM, settings: AlignConfig, given: Any) -> LVLM:
    """The result with the visual tokenizer as the family has it: in memory it may be in fewer bits."""
    if isinstance(given, VisualTokenizer):
        return lvlm
    return LVLM(load_visual_tokenizer(settings.visual, "cpu", "float32"), lvlm.backbone, lvlm.name)


def _lvlm(settings: AlignConfig, visual: VisualTokenizer) -> LVLM:
    """The LLM behind a new projector, or that of an earlier result."""
    device = resolve_device(loading_device(settings.device))
    dtype = resolve_dtype(settings.dtype, device)
    llm, words = open_llm(settings.llm, dtype, settings.seed if settings.fresh else None)
    if _with_lora(settings):
        lora_targets(llm, settings.lora)  # a wrong name shows before stage 1, not behind it
    prompt = settings.prompt or ("chat-template" if getattr(words, "chat_template", None) else "plain")
    table = llm.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        config = {"type": settings.projector, "in": visual.codebook.dim, "out": table.shape[1]}
        projector = Projector(config)
    if settings.start is not None:
        _start(projector, user_path(settings.start), settings.llm)
        _start_factors(llm, settings)
    else:
        _scale(projector, visual, float(table.detach().float().pow(2).mean().sqrt()))
    backbone = Backbone(projector.to(dtype), llm, words, prompt, visual.codebook.fingerprint)
    name = _short(settings.llm) if user_path(settings.llm).exists() else settings.llm
    return LVLM(visual, backbone.to(device), name).eval()  # the tokenizer encodes where it is


def _start(projector: Projector, folder: Path, llm: str) -> None:
    """Take the projector of an earlier result; say so if it was learned for an LLM of another name."""
    for place in (folder / BACKBONE / "projector", folder / "projector"):
        if (place / "config.json").is_file():
            if read_json(place / "config.json") != projector.config:
                raise CheckpointError(f"The projector in {place} does not fit this LLM and codebook.")
            weights = load_tensors(place / "model.safetensors")
            path = place / "model.safetensors"
            load_strict(projector, {name: value.float() for name, value in weights.items()}, path)
            manifest = place.parent / "craft.json"
            before = read_json(manifest).get("llm") if manifest.is_file() else None
            if before not in (None, _lasting(llm)):  # it may be the same LLM in another place
                say(f"note: {folder} was made with the LLM {before}, and this run is given {_lasting(llm)}")
            return
    raise CheckpointError(f"{folder} holds no projector; give an earlier result of `craft align`.")


def _start_factors(llm: torch.nn.Module, settings: AlignConfig) -> dict[str, Tensor]:
    """The LoRA of an earlier result, where it has one; a stage without LoRA cannot go on from it."""
    if settings.start is None:
        return {}
    folder = user_path(settings.start)
    for place in (folder / BACKBONE / "lora", folder / "lora"):
        path = place / "model.safetensors"
        if path.is_file():
            if settings.stage != "2" or not _with_lora(settings):
                raise ConfigError(f"{folder} has LoRA; go on from it with stage 2 and lora.rank.")
            factors = load_tensors(path)
            check_factors(llm, settings.lora, factors, path)
            return factors
    return {}


@torch.no_grad()
def _scale(projector: Projector, visual: VisualTokenizer, wanted: float) -> None:
    """Projected codeword sums get the root mean square of the LLM's embeddings. Source: ours."""
    codebook = visual.codebook
    drawn = torch.randint(codebook.size, (512, codebook.num_levels), generator=generator("scale"))
    projected = projector(codebook.lookup(drawn.to(codebook.codewords.device)).cpu().float())
    last = projector.layers[-1] if isinstance(projector.layers, torch.nn.Sequential) else projector.layers
    for parameter in last.parameters():
        parameter.mul_(wanted / float(projected.pow(2).mean().sqrt()))


def _lesson(
    lvlm: LVLM, settings: AlignConfig, stage: int, codes: ImageCodes | None
) -> Callable[[LVLM, Sequence[Row], AlignConfig], Lesson]:
    """What a stage trains."""
    factors = _start_factors(lvlm.backbone.llm, settings)
    return partial(alignment, stage=stage, codes=codes, factors=factors)


def _train(
    lvlm: LVLM,
    rows: list[Row],
    settings: AlignConfig,
    run: RunFolder,
    stage: int,
    codes: ImageCodes | None,
    resume: bool,
) -> dict[str, Any]:
    """One stage, in a folder of its own below the run's."""
    own = RunFolder(run.path / f"stage-{stage}")
    own.open(settings, resume=resume, overwrite=True)
    say(f"stage {stage}: {lvlm.name}, {len(rows)} rows, {settings.steps(len(rows))} steps")
    lesson = _lesson(lvlm, settings, stage, codes)
    result = fit(lvlm, rows, settings, own, lesson=lesson, resume=resume)
    own.update(status="finished")
    losses = on_main(lambda: [line["loss"] for line in own.metrics() if "loss" in line])
    return {
        "rows": len(rows),
        "steps": result.steps,
        "first_loss": round(losses[0], 4),
        "last_loss": round(sum(losses[-20:]) / len(losses[-20:]), 4),
        "minutes": round(result.minutes, 2),
    }


def _language(lvlm: LVLM, settings: AlignConfig, known: Any) -> dict[str, Any]:
    """What the LLM says without images; `known` is what was found before an interruption."""
    if known is not None:
        return dict(known)
    device = resolve_device(settings.device)
    with autocast(device, resolve_dtype(settings.dtype, device)):
        found = check_language(lvlm.backbone)
    return {"perplexity": round(found.perplexity, 3), "answers": list(found.answers)}


def _lasting(name: str) -> str:
    """The LLM's name as another working folder understands it."""
    path = user_path(name)
    return str(path.resolve()) if path.exists() else name


def _finished(run: RunFolder, settings: AlignConfig) -> AlignResult:
    """The result of a run that had come to its end before."""
    record = run.record
    lvlm = load(run.path / BACKBONE, settings.device, settings.dtype)
    folder = run.path / BACKBONE
    return AlignResult(run.path, folder, record["metrics"], record["language"], settings, lvlm)
