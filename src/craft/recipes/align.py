"""`craft.align`: make an LLM a backbone of an existing codebook, in the two stages of §8.

Read `align` from top to bottom. The visual tokenizer is frozen. Once its codes are cached, it does not run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from craft.core.device import autocast, resolve_device, resolve_dtype
from craft.core.errors import CheckpointError, ConfigError
from craft.core.files import atomic_write_text, read_json, user_path
from craft.core.processes import on_main
from craft.core.progress import say
from craft.core.seeding import generator
from craft.core.tensors import load_tensors
from craft.evaluation.language import INSTRUCTIONS, check_language
from craft.formats.checks import add_factors, load_strict
from craft.formats.code_cache import ImageCodes
from craft.formats.llm_source import Borrowed, open_llm
from craft.formats.load import load, load_visual_tokenizer
from craft.formats.native import read_backbone_manifest, save_native
from craft.lessons.align import alignment
from craft.lessons.packing import PackedRow
from craft.lessons.rehearsal import Rehearsal, rehearse_alignment, rehearse_sizes
from craft.models import paper_sizes
from craft.models.backbone import Backbone
from craft.models.image_lora import Scope, has_image_lora
from craft.models.lvlm import LVLM
from craft.models.projector import Projector
from craft.models.visual_tokenizer import VisualTokenizer
from craft.recipes.align_data import (
    ConversationSource,
    check_images,
    check_turns,
    encode_sets,
    leave_out_cut_off,
    read_sets,
    rows_fingerprint,
    source_names,
    stage_rows,
    unused,
)
from craft.recipes.arguments import without_none
from craft.recipes.opening import OPTIONAL, run_folder
from craft.training.config import AlignConfig
from craft.training.engine import loading_device
from craft.training.fit import fit
from craft.training.lesson import Lesson
from craft.training.lora import check_factors, lora_targets, need_peft, take_lora
from craft.training.run_folder import RunFolder

BACKBONE = "backbone"
"""The folder of the result in the run folder, which is a model family: `visual/` and this."""

_CARD_METRICS = ("steps", "first_loss", "last_loss", "minutes")


@dataclass(frozen=True)
class AlignResult:
    """A finished alignment.

    Attributes:
        out: the run folder, which `craft.load` accepts.
        backbone: the folder of the backbone in it.
        metrics: steps, rows, minutes, first and last loss of each stage ("1", "2").
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
    data: ConversationSource = None,
    stage: str | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    config: AlignConfig | Mapping[str, Any] | str | Path | None = None,
    captions: ConversationSource = None,
    text: ConversationSource = None,
    codes: ImageCodes | str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **overrides: Any,
) -> AlignResult:
    """Train a projector, and in stage 2 the LLM, to read a codebook. The visual tokenizer does not change.

    Args:
        llm: a folder, a GGUF file, a hub id, a shipped backbone (its LLM), or a name such as "smollm2".
        visual: a shipped family ("craft-tiny"), a folder, a hub id, or a loaded visual tokenizer.
        data: files of conversations, embedded domains, or conversations (`craft.data.chats`).
        stage: "1" trains the projector, "2" projector and LLM, "both" one after the other.
        out: the run folder (default: `runs/align-` and the LLM's name).
        seed: of order, the projector's first weights and everything else that is random.
        max_steps: optimiser steps of each stage; None is one pass over its rows.
        config: a YAML file, dict or `AlignConfig`; all other arguments override it.
        captions: data for stage 1 instead of `data`.
        text: conversations without images, mixed into stage 2.
        codes: cached codes, whose rows (ints) are then the images of the conversations; or a folder for them.
        resume: continue the interrupted run in `out`; the result is that of an uninterrupted run.
        overwrite: replace the run in `out`.
        **overrides: any other setting, as for `craft.adapt`.

    Raises:
        ConfigError: a setting is unknown or impossible, or `out` is in use.
        DataError: the data is missing or broken, or every row is cut off at `max_length`.
        CheckpointError: LLM or visual tokenizer are missing or damaged.
        TrainingError: training failed, or was interrupted (`Interrupted`).

    Source: §8.
    """
    if isinstance(codes, str | Path):
        overrides, codes = {**overrides, "codes": str(codes)}, None
    overrides = {"stage": stage, "out": out, "seed": seed, "max_steps": max_steps, **overrides}
    sources = {"data": data, "captions": captions, "text": text}
    settings = _settings(llm, visual, sources, config, overrides)
    if settings.llm in paper_sizes.LLMS:
        raise ConfigError(
            f"{settings.llm} is a size without weights, for --dry-run; give an LLM's folder or hub id."
        )
    run, finished = run_folder(settings, resume, overwrite)
    if finished:
        return _finished(run, settings)

    with run.held():
        # 1. The conversations, the LLM that will read the codes, and the codes of all images.
        lvlm, stages, codes = _open(settings, visual, sources, codes)

        # 2. The start of the run, with the LLM's language before.
        run.open(settings, resume, overwrite)
        fingerprint = rows_fingerprint(stages, codes)
        if run.record.get("data_fingerprint", fingerprint) != fingerprint:
            raise ConfigError(f"The run in {run.path} began with other data; restore it.")
        counts = {name: len(rows) for name, rows in stages.items()}
        codebook = lvlm.visual.codebook.fingerprint
        run.update(status="running", data_fingerprint=fingerprint, codebook=codebook, rows=counts)
        before = _language(lvlm, settings, run.record.get("language_before"))
        run.update(language_before=before)

        with run.recording_failure():
            # 3. Stage 1: projector. Stage 2: projector and LLM.
            metrics = {
                name: _train(lvlm, rows, settings, run, int(name), codes, resume)
                for name, rows in stages.items()
            }

            # 4. The backbone: LoRA merged, or for prompts with an image; the LLM's language after; the card.
            scope = _scope_of(settings)
            factors = take_lora(lvlm.backbone.llm, merge=scope == "all")
            half = {name: value.to(torch.bfloat16) for name, value in factors.items()}
            if scope == "image":
                add_factors(lvlm.backbone.llm, half, run.path, scope)
            after = _language(lvlm, settings, None)
            llm_unchanged = settings.stage == "1" or settings.lora.rank > 0  # except for LoRA
            if llm_unchanged and not settings.lora.merge:
                lvlm.backbone.borrowed = Borrowed(_lasting_name(settings.llm), half)
            folder = on_main(lambda: save_native(run.path, BACKBONE, _unrounded(lvlm, settings, visual)))
            language = {"before": before, "after": after}
            card = _backbone_card(settings, lvlm, metrics, language, counts)
            on_main(lambda: atomic_write_text(folder / "README.md", card))
            run.update(status="finished", metrics=metrics, language=language)
        return AlignResult(run.path, folder, metrics, language, settings, lvlm)


def rehearse(
    llm: str | Path | None = None,
    visual: str | Path | None = None,
    data: ConversationSource = None,
    stage: str | None = None,
    out: str | Path | None = None,
    config: AlignConfig | Mapping[str, Any] | str | Path | None = None,
    captions: ConversationSource = None,
    text: ConversationSource = None,
    **overrides: Any,
) -> dict[str, Rehearsal]:
    """The dry run of `align`: one batch of each stage forward and backward. CRAFT writes nothing but codes.

    An LLM of `craft.models.paper_sizes` on `paper/vila-u` has the sizes of §8, without weights or data.

    Args:
        llm, visual, data, stage, out, config, captions, text: as for `align`.
        **overrides: seed, max_steps and any other setting.

    Raises:
        CraftError: everything that `align` with the same arguments would raise at its start.
    """
    overrides = {"stage": stage, "out": out, **overrides}
    sources = {"data": data, "captions": captions, "text": text}
    settings = _settings(llm, visual, sources, config, overrides)
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
    lvlm, stages, codes = _open(settings, visual, sources)
    return {
        name: rehearse_alignment(lvlm, rows, settings, _lesson_maker(lvlm, settings, int(name), codes))
        for name, rows in stages.items()
    }


def _open(
    settings: AlignConfig,
    visual: str | Path | VisualTokenizer | None,
    sources: Mapping[str, ConversationSource],
    codes: ImageCodes | None = None,
) -> tuple[LVLM, dict[str, list[PackedRow]], ImageCodes | None]:
    """The LVLM, the rows of each stage, and the codes. The vision tower runs once per image."""
    sets = read_sets(settings, **sources)
    if _with_lora(settings) and _scope_of(settings) == "image":
        check_images(sets)
    if not isinstance(visual, VisualTokenizer):
        visual = load_visual_tokenizer(settings.visual, settings.device, settings.dtype)
    visual.need_codes("Aligning an LLM")
    lvlm = _lvlm(settings, visual)  # a wrong name fails before the hours of encoding
    check_turns(sets, lvlm)
    sets = leave_out_cut_off(sets, lvlm, settings)
    sets, codes = encode_sets(sets, visual, settings, codes)
    return lvlm, stage_rows(settings, sets, lvlm), codes


def _settings(
    llm: str | Path | None,
    visual: str | Path | VisualTokenizer | None,
    sources: Mapping[str, ConversationSource],
    config: Any,
    overrides: Mapping[str, Any],
) -> AlignConfig:
    """The config, with the arguments of `align` on top of it."""
    named = {
        "llm": llm and str(llm),
        "visual": None if isinstance(visual, VisualTokenizer) else visual and str(visual),
        **{name: source_names(source) for name, source in sources.items()},
    }
    others = without_none(overrides, (*OPTIONAL, "stage", "out"))
    others |= {name: str(others[name]) for name in ("stage", "out") if name in others}
    settings = AlignConfig.build(config, {**without_none(named), **others})
    if not settings.llm:
        raise ConfigError("Which LLM? Give a folder, a GGUF file, a hub id or a shipped backbone.")
    if settings.eval_every is not None:
        raise ConfigError("eval_every needs validation samples, and an alignment has none; unset it.")
    if _with_lora(settings):
        need_peft()
    if settings.out is None:
        settings = settings.model_copy(update={"out": str(Path("runs") / f"align-{_short(settings.llm)}")})
    return settings


def _short(llm: str) -> str:
    """The last part of an LLM's name. (The dot in "Qwen2-0.5B" is not the start of a suffix.)"""
    return Path(llm).name.removesuffix(".gguf")


def _with_lora(settings: AlignConfig) -> bool:
    return settings.lora.rank > 0 and settings.stage != "1"


def _unrounded(lvlm: LVLM, settings: AlignConfig, visual: str | Path | VisualTokenizer | None) -> LVLM:
    """The result with the visual tokenizer in its original precision, which in memory may be lower."""
    if isinstance(visual, VisualTokenizer):
        return lvlm
    return LVLM(load_visual_tokenizer(settings.visual, "cpu", "float32"), lvlm.backbone, lvlm.name)


def _lvlm(settings: AlignConfig, visual: VisualTokenizer) -> LVLM:
    """The LLM with a new projector, or with the projector of an earlier result."""
    device = resolve_device(loading_device(settings.device))
    dtype = resolve_dtype(settings.dtype, device)
    llm, text_tokenizer = open_llm(settings.llm, dtype)
    if _with_lora(settings):
        lora_targets(llm, settings.lora)  # a wrong name fails before stage 1, not after it
    prompt = settings.prompt
    if prompt is None:
        prompt = "chat-template" if getattr(text_tokenizer, "chat_template", None) else "plain"
    table = cast(nn.Embedding, llm.get_input_embeddings()).weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        config = {"type": settings.projector, "in": visual.codebook.dim, "out": table.shape[1]}
        projector = Projector(config)
    if settings.start is not None:
        _load_projector(projector, user_path(settings.start), settings.llm)
        _earlier_factors(llm, settings)
    else:
        _scale(projector, visual, float(table.detach().float().pow(2).mean().sqrt()))
    backbone = Backbone(projector.to(dtype), llm, text_tokenizer, prompt, visual.codebook.fingerprint)
    name = _short(settings.llm) if user_path(settings.llm).exists() else settings.llm
    return LVLM(visual, backbone.to(device), name).eval()  # the tokenizer encodes where it is


def _load_projector(projector: Projector, folder: Path, llm: str) -> None:
    """Take the projector of an earlier result, with a note if it was trained for an LLM of another name."""
    source = _earlier_part(folder, "projector")
    if source is None:
        raise CheckpointError(f"{folder} holds no projector; give an earlier result of `craft align`.")
    if read_json(source / "config.json") != projector.config:
        raise CheckpointError(f"The projector in {source} does not fit this LLM and codebook.")
    path = source / "model.safetensors"
    load_strict(projector, {name: value.float() for name, value in load_tensors(path).items()}, path)
    manifest = source.parent / "craft.json"
    before = read_json(manifest).get("llm") if manifest.is_file() else None
    if before not in (None, _lasting_name(llm)):  # it may be the same LLM in another folder
        say(f"note: {folder} was made with the LLM {before}, and this run uses {_lasting_name(llm)}")


def _earlier_factors(llm: torch.nn.Module, settings: AlignConfig) -> dict[str, Tensor]:
    """The LoRA of an earlier result, if it has one; a stage without LoRA cannot continue from it."""
    folder = None if settings.start is None else user_path(settings.start)
    source = None if folder is None else _earlier_part(folder, "lora")
    if source is None:
        return {}
    if settings.stage != "2" or not _with_lora(settings):
        raise ConfigError(f"{folder} has LoRA; continue from it with stage 2 and lora.rank.")
    path = source / "model.safetensors"
    factors = load_tensors(path)
    check_factors(llm, settings.lora, factors, path)
    return factors


def _scope_of(settings: AlignConfig) -> Scope:
    """The prompts on which the LoRA of an alignment acts: as set, as in the earlier result, or "image"."""
    if settings.lora.scope is not None:
        return settings.lora.scope
    source = None if settings.start is None else _earlier_part(user_path(settings.start), "lora")
    if source is None:
        return "image"
    return read_backbone_manifest(source.parent).get("lora_scope", "all")


def _earlier_part(folder: Path, part: str) -> Path | None:
    """The folder of a part ("projector" or "lora") of an earlier result: a run folder or a backbone."""
    file = "config.json" if part == "projector" else "model.safetensors"
    paths = (folder / BACKBONE / part, folder / part)
    return next((path for path in paths if (path / file).is_file()), None)


@torch.no_grad()
def _scale(projector: Projector, visual: VisualTokenizer, target: float) -> None:
    """Give projected codeword sums the root mean square of the LLM's embeddings. Source: ours."""
    codebook = visual.codebook
    codes = torch.randint(codebook.size, (512, codebook.num_levels), generator=generator("scale"))
    projected = projector(codebook.lookup(codes.to(codebook.codewords.device)).cpu().float())
    last = projector.layers[-1] if isinstance(projector.layers, torch.nn.Sequential) else projector.layers
    for parameter in last.parameters():
        parameter.mul_(target / float(projected.pow(2).mean().sqrt()))


def _lesson_maker(
    lvlm: LVLM, settings: AlignConfig, stage: int, codes: ImageCodes | None
) -> Callable[[LVLM, Sequence[PackedRow], AlignConfig], Lesson]:
    """The lesson of a stage, with the LoRA factors that it starts from."""
    factors = _earlier_factors(lvlm.backbone.llm, settings)
    return partial(alignment, stage=stage, codes=codes, factors=factors)


def _train(
    lvlm: LVLM,
    rows: list[PackedRow],
    settings: AlignConfig,
    run: RunFolder,
    stage: int,
    codes: ImageCodes | None,
    resume: bool,
) -> dict[str, Any]:
    """Train one stage in its folder inside the run's."""
    folder = RunFolder(run.path / f"stage-{stage}")
    folder.open(settings, resume=resume, overwrite=True)
    say(f"stage {stage}: {lvlm.name}, {len(rows)} rows, {settings.steps(len(rows))} steps")
    make_lesson = _lesson_maker(lvlm, settings, stage, codes)
    result = fit(lvlm, rows, settings, folder, make_lesson=make_lesson, resume=resume)
    folder.update(status="finished")
    losses = on_main(lambda: [line["loss"] for line in folder.metrics() if "loss" in line])
    return {
        "rows": len(rows),
        "steps": result.steps,
        "first_loss": round(losses[0], 4),
        "last_loss": round(sum(losses[-20:]) / len(losses[-20:]), 4),
        "minutes": round(result.minutes, 2),
    }


def _language(lvlm: LVLM, settings: AlignConfig, recorded: Any) -> dict[str, Any]:
    """Perplexity and answers of the LLM without images; `recorded` are those from before an interruption."""
    if recorded is not None:
        return dict(recorded)
    device = resolve_device(settings.device)
    with autocast(device, resolve_dtype(settings.dtype, device)):
        language = check_language(lvlm.backbone)
    return {"perplexity": round(language.perplexity, 3), "answers": list(language.answers)}


def _lasting_name(name: str) -> str:
    """The LLM's name, as an absolute path if it is one: valid in every working folder."""
    path = user_path(name)
    return str(path.resolve()) if path.exists() else name


def _finished(run: RunFolder, settings: AlignConfig) -> AlignResult:
    """The result of a run that finished earlier."""
    folder, record = run.path / BACKBONE, run.record
    lvlm = load(folder, settings.device, settings.dtype)
    return AlignResult(run.path, folder, record["metrics"], record["language"], settings, lvlm)


def _backbone_card(
    settings: AlignConfig,
    lvlm: LVLM,
    metrics: Mapping[str, Mapping[str, Any]],
    language: Mapping[str, Any],
    counts: Mapping[str, int],
) -> str:
    """The model card of the backbone."""
    trained = "the projector" if settings.stage == "1" else "projector and LLM"
    if settings.stage != "1" and settings.lora.rank:
        trained = f"the projector, and the LLM by LoRA of rank {settings.lora.rank}"
        if has_image_lora(lvlm.backbone.llm):
            trained += ", which acts on prompts with an image only"
    kinds = [name for name in ("captions", "data", "text") if name not in unused(settings)]
    sources = [source for name in kinds for source in getattr(settings, name)]
    lines = [
        f"# {lvlm.name} for codebook {lvlm.backbone.codebook_fingerprint[:12]}",
        "",
        f"The LLM `{settings.llm}` as a backbone of the visual tokenizer `{settings.visual}`. Trained: "
        f"{trained}. The visual tokenizer is unchanged. Each part keeps its own licence.",
        "",
        "| stage | rows | steps | first loss | last loss | minutes |",
        "|---|---|---|---|---|---|",
        *(_line([name, counts[name], *(m[key] for key in _CARD_METRICS)]) for name, m in metrics.items()),
        "",
        f"Data: {', '.join(dict.fromkeys(sources))}.",
        "",
        "Language without images, before and after: perplexity of held-out text "
        f"{language['before']['perplexity']} and {language['after']['perplexity']}.",
        "",
        "| instruction | before | after |",
        "|---|---|---|",
    ]
    answers = zip(INSTRUCTIONS, language["before"]["answers"], language["after"]["answers"], strict=True)
    lines += [_line(row) for row in answers]
    lines += ["", "```python", "import craft", "", f'lvlm = craft.load("{settings.out}")', "```", ""]
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "/") for cell in cells) + " |"
