"""`craft adapt`."""

import shlex
from pathlib import Path
from typing import Any

from craft.cli.options import COMMON, Common, Flag, Settings, settings_of
from craft.cli.show import listed, percent, show_json, show_pairs, show_table, size


def adapt(
    surrogate: str | None = None,
    *,
    data: str | None = None,
    root: str | None = None,
    out: Path | None = None,
    max_steps: int | None = None,
    micro_batch: str | None = None,
    resume: Flag = False,
    overwrite: Flag = False,
    dry_run: Flag = False,
    settings: Settings = None,
    common: Common = COMMON,
) -> None:
    """Adapt the vision tower of a surrogate LVLM to your pictures; LLM, projector and codebook stay frozen.

    Any setting can be given as --set learning_rate=1e-4 or in full as --losses.commitment.weight 0.2; the
    run folder's config.resolved.yaml shows them all.

    Args:
        surrogate: a shipped model (craft-tiny/llama), a folder, or a hub id; its LLM scores the answers.
        data: an embedded domain or a benchmark (`craft data list`), a folder of class folders, a table of
            questions, or a folder of `craft data prepare`.
        root: where a benchmark lies; else what relative paths in the data start from.
        out: the run folder; by default runs/ and the data's name.
        max_steps: optimiser steps; by default the config's.
        micro_batch: most samples in memory at once, or auto: the largest number that fits; same result.
        resume: go on with the interrupted run in the run folder; the result is that of an unbroken run.
        overwrite: replace the run in the run folder.
        dry_run: build, show who trains, take one batch forward and backward, estimate memory; write nothing.
        settings: NAME=VALUE, any setting of the config; may be given several times.
    """
    from craft.core.processes import leave
    from craft.recipes.adapt import adapt as run
    from craft.recipes.adapt import rehearse
    from craft.training.config import AdaptConfig

    given = {"data.root": root, "micro_batch": micro_batch}
    given = {name: value for name, value in given.items() if value is not None}
    config = AdaptConfig.build(common.config, {**settings_of(settings, common), **given})
    if dry_run:
        show_rehearsal(rehearse(surrogate, data, common.seed, max_steps, config), common.json)
        return
    result = run(surrogate, data, out, common.seed, max_steps, config, resume=resume, overwrite=overwrite)
    if leave() != 0:
        return  # one process of a distributed run speaks for all
    if common.json:
        show_json(
            {
                "out": str(result.out),
                "encoder": str(result.encoder),
                "held_out": list(result.held_out),
                "metrics": result.metrics,
                "config": result.config.model_dump(mode="json"),
            }
        )
        return
    metrics, best = result.metrics, result.metrics.get("best_step")
    kept = (
        ""
        if best is None
        else f", that of step {best} kept (validation {percent(metrics['best_validation'])} %)"
    )
    before = metrics.get("codes_used_before")
    show_pairs(
        {
            "adapted encoder": result.encoder,
            "steps": f"{metrics['steps']}{kept}",
            "minutes": f"{metrics['minutes']:.1f}",
            "level-1 codes in use": f"{metrics['codes_used']} of {len(result.prior)}"
            + ("" if before is None else f" ({before} before)"),
            "never trained on": listed(result.held_out),
        }
    )
    name, place = shlex.quote(result.config.surrogate), shlex.quote(str(result.out))
    told = result.config.data
    data = shlex.quote(told.name) + (f" --root {shlex.quote(told.root)}" if told.root else "")
    print(f"\nNext: craft eval {name} --encoder {place} --data {data}")
    print(f"      (any backbone of this codebook; `craft inspect {place}` names those at hand)")


def rehearsal_facts(found: Any) -> dict[str, Any]:
    """A `craft.training.rehearsal.Rehearsal` for JSON."""
    rows = [{"part": part, "parameters": n, "trainable": t} for part, n, t in found.parameters]
    return {
        "parameters": rows,
        "losses": found.parts,
        "memory": found.memory,
        "steps": found.steps,
        "samples": found.samples,
        "tokens": found.tokens,
    }


def show_rehearsal(found: Any, as_json: bool) -> None:
    """Print what a dry run found out: a `craft.training.rehearsal.Rehearsal`."""
    if as_json:
        show_json(rehearsal_facts(found))
        return
    rows = [
        (part, f"{count:,}", f"{trained:,}" if trained else "frozen")
        for part, count, trained in found.parameters
    ]
    show_table("Who trains", ("part", "parameters", "trainable"), rows)
    memory = [(name, size(count)) for name, count in found.memory.items()]
    show_table("Memory of a step (estimate)", ("what", "size"), memory, sections=[len(memory) - 2])
    losses = ", ".join(f"{name} {value:.4g}" for name, value in found.parts.items())
    show_pairs(
        {
            "first batch": losses or "sizes without values: no step was taken",
            "longest sequence": f"{found.tokens} tokens",
            "the run": f"{found.samples} training samples, {found.steps} steps",
        }
    )
    print("\nA dry run: nothing was written. Leave --dry-run out to train.")
