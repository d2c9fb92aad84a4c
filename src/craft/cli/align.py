"""`craft align`."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import Parameter

from craft.cli.adapt import show_rehearsals
from craft.cli.options import COMMON, Common, Flag, Several, settings_of
from craft.cli.output import show_json, show_line, show_pairs, show_table
from craft.training.config import AlignConfig


@Parameter(name="*")
@dataclass(frozen=True)
class AlignFlags:
    """The models, the data and the budget of an alignment.

    Attributes:
        visual: the visual tokenizer: a shipped family (by default craft-tiny), a folder, or a hub id.
        stage: 1 trains the projector, 2 projector and LLM, both (the default) one after the other.
        data: the training data; several values may follow.
        captions: the training data of stage 1, if it is different.
        text: conversations without images, mixed into stage 2 so that the LLM keeps its language.
        out: the run folder; by default runs/align- and the LLM's name.
        max_steps: optimiser steps of each stage; by default one pass.
        micro_batch: the largest number of rows in memory at once, or auto, which finds it; same result.
        lora: the rank of LoRA, instead of training the whole LLM; it acts on prompts with an image only.
        splits, partial, overlap: as for `craft adapt`, for data that is not a table of conversations.
    """

    visual: str | None = None
    stage: Literal["1", "2", "both"] | None = None
    data: Several = None
    captions: Several = None
    text: Several = None
    out: Path | None = None
    max_steps: int | None = None
    micro_batch: str | None = None
    lora: int | None = None
    splits: Several = None
    partial: Flag = False
    overlap: Literal["refuse", "drop", "train"] | None = None


def align(
    llm: str | None = None,
    *,
    flags: AlignFlags = AlignFlags(),
    resume: Flag = False,
    overwrite: Flag = False,
    dry_run: Flag = False,
    common: Common = COMMON,
) -> None:
    """Make an LLM a backbone of an existing codebook: projector first, then projector and LLM (§8).

    The visual tokenizer does not change. CRAFT computes its codes once per image and stores them next to the
    run folder, so the vision tower does not run again for a second LLM. Data: JSON or JSONL with LLaVA's
    `conversations` (CC3M-595K, ShareGPT4V, LLaVA-Instruct-150K), `messages`, captions, or questions and
    answers; an embedded domain; a folder of class folders.

    Args:
        llm: a folder, a .gguf file, a hub id, a shipped backbone (its LLM), or smollm2.
        resume: continue the interrupted run in the run folder.
        overwrite: replace the run in the run folder.
        dry_run: load, show what trains, run one batch, estimate memory; write only the codes. With
            paper/qwen2-0.5b and --visual paper/vila-u, the sizes of §8 without any weights.
    """
    overrides: dict[str, Any] = settings_of(common)
    named = {"lora.rank": flags.lora, "micro_batch": flags.micro_batch, "overlap": flags.overlap}
    named |= {"splits": flags.splits, "partial": flags.partial or None}
    overrides |= {name: value for name, value in named.items() if value is not None}
    config = AlignConfig.build(common.config, overrides)
    from craft.core.processes import leave
    from craft.recipes.align import align as run

    sources: dict[str, Any] = {name: getattr(flags, name) for name in ("visual", "data", "captions", "text")}
    sources["llm"] = llm
    arguments: dict[str, Any] = {name: getattr(flags, name) for name in ("stage", "out", "max_steps")}
    arguments["seed"] = common.seed
    if dry_run:
        _dry_run(sources, config, arguments, common.json)
        return
    result = run(**sources, config=config, resume=resume, overwrite=overwrite, **arguments)
    leave()  # in a distributed run, only the main process goes on to print
    if common.json:
        show_json(
            {
                "out": str(result.out),
                "backbone": str(result.backbone),
                "metrics": result.metrics,
                "language": result.language,
                "config": result.config.model_dump(mode="json"),
            }
        )
        return
    show_language(result.language)
    stages = {
        f"stage {name}": f"{m['steps']} steps, loss {m['first_loss']} → {m['last_loss']}, {m['minutes']} min"
        for name, m in result.metrics.items()
    }
    show_pairs({"backbone": result.backbone, **stages})
    show_line()
    show_line(f"Next: craft eval {shlex.quote(str(result.out))} --data …")


def show_language(language: dict[str, Any]) -> None:
    """Perplexity and answers without images, before and after."""
    from craft.evaluation.language import INSTRUCTIONS

    before, after = language["before"], language["after"]
    rows = [("perplexity of held-out text", f"{before['perplexity']}", f"{after['perplexity']}")]
    rows += list(zip(INSTRUCTIONS, before["answers"], after["answers"], strict=True))
    columns = ("asked", "before", "after")
    show_table("The LLM without images", columns, rows, sections=[0], prose=columns)


def _dry_run(sources: dict[str, Any], config: Any, overrides: dict[str, Any], as_json: bool) -> None:
    from craft.recipes.align import rehearse

    rehearsals = rehearse(**sources, config=config, **overrides)
    took_steps = any(rehearsal.parts for rehearsal in rehearsals.values())  # on codes; sizes alone take none
    written = "nothing was written" + (" but the codes of the images" if took_steps else "")
    show_rehearsals({f"stage {name}": one for name, one in rehearsals.items()}, as_json, written)
