"""`craft adapt` and `craft baseline`, and what every dry run of a training shows."""

import shlex
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from craft.cli.options import COMMON, TRAINING, Common, Training
from craft.cli.output import listed, show_json, show_pairs, show_table, size
from craft.core.text import percent


def adapt(surrogate: str | None = None, *, training: Training = TRAINING, common: Common = COMMON) -> None:
    """Adapt the vision tower of a surrogate LVLM to your pictures; LLM, projector and codebook stay frozen.

    Any setting can be given as --set learning_rate=1e-4 or in full as --losses.commitment.weight 0.2; the
    run folder's config.resolved.yaml shows them all.

    Args:
        surrogate: a shipped model (craft-tiny/llama), a folder, or a hub id; its LLM scores the answers.
    """
    from craft.recipes.adapt import adapt as run
    from craft.recipes.adapt import rehearse
    from craft.training.config import AdaptConfig

    result = _train(run, rehearse, AdaptConfig, surrogate, training, common)
    if result is None:
        return
    used, before = result.metrics["codes_used"], result.metrics.get("codes_used_before")
    codes = f"{used} of {len(result.prior)}" + ("" if before is None else f" ({before} before)")
    _show_trained(
        result,
        common.json,
        facts={"out": str(result.out), "encoder": str(result.encoder)},
        made={"adapted encoder": result.encoder},
        more={"level-1 codes in use": codes},
    )
    if not common.json:
        place = shlex.quote(str(result.out))
        print(f"      (any backbone of this codebook; `craft inspect {place}` names those at hand)")


def baseline(
    method: str, model: str | None = None, *, training: Training = TRAINING, common: Common = COMMON
) -> None:
    """Tune a model by one of the methods that CRAFT is compared with, on the same data, steps and settings.

    Methods: vision-ft and ldifs (for a continuous LVLM, such as craft-tiny/continuous-qwen2 or a LLaVA
    checkpoint), projector-ft and llm-lora (for any LVLM), vision-ft-codebook (for a discrete one). Zero-shot
    is `craft eval`. Settings are those of `craft adapt`, with ldifs.weight and ldifs.layers.

    Args:
        method: vision-ft, projector-ft, ldifs, llm-lora or vision-ft-codebook.
        model: a shipped model, a folder, or a hub id.
    """
    from craft.recipes.baseline import find_baseline, rehearse, tune

    kind = find_baseline(method, trains=True).config_class
    result = _train(partial(tune, method), partial(rehearse, method), kind, model, training, common)
    if result is None:
        return
    facts = {"method": method, "out": str(result.out)}
    _show_trained(result, common.json, facts, made={"tuned": result.out}, more={})


def _train(
    run: Callable[..., Any],
    rehearse: Callable[..., Any],
    kind: Any,
    model: str | None,
    flags: Training,
    common: Common,
) -> Any:
    """The result of the run; None where there is nothing more to show: of a dry run, that is shown here.

    Args:
        run, rehearse: called as `craft.recipes.adapt` and `craft.recipes.rehearse` are.
        kind: the class of the config.
        model: what trains.
        flags, common: of the command line.
    """
    from craft.core.processes import leave

    config = kind.build(common.config, flags.overrides(common))
    budget = {"seed": common.seed, "max_steps": flags.max_steps}
    if flags.dry_run:
        show_rehearsals({"": rehearse(model, flags.data, config=config, **budget)}, common.json)
        return None
    resumption = {"resume": flags.resume, "overwrite": flags.overwrite}
    result = run(model, flags.data, flags.out, config=config, **budget, **resumption)
    return result if leave() == 0 else None  # one process of a distributed run speaks for all


def _show_trained(
    result: Any, as_json: bool, facts: Mapping[str, Any], made: Mapping[str, Any], more: Mapping[str, Any]
) -> None:
    """Print what a run came to: an `AdaptResult` or a `BaselineResult`.

    Args:
        result: the run's.
        as_json: print JSON.
        facts: what its JSON begins with.
        made: what its lines begin with.
        more: lines that only this kind of result has.
    """
    metrics, config = result.metrics, result.config
    if as_json:
        outcome = {"held_out": list(result.held_out), "metrics": metrics}
        show_json({**facts, **outcome, "config": config.model_dump(mode="json")})
        return
    best, kept = metrics.get("best_step"), ""
    if best is not None:
        kept = f", that of step {best} kept (validation {percent(metrics['best_validation'])} %)"
    show_pairs(
        {
            **made,
            "steps": f"{metrics['steps']}{kept}",
            "minutes": f"{metrics['minutes']:.1f}",
            **more,
            "never trained on": listed(result.held_out),
        }
    )
    name, place = shlex.quote(config.surrogate), shlex.quote(str(result.out))
    data = shlex.quote(config.data.name)
    data += f" --root {shlex.quote(config.data.root)}" if config.data.root else ""
    print(f"\nNext: craft eval {name} --encoder {place} --data {data}")


def _rehearsal_facts(rehearsal: Any) -> dict[str, Any]:
    """A `craft.lessons.rehearsal.Rehearsal` for JSON."""
    rows = [{"part": part, "parameters": n, "trainable": t} for part, n, t in rehearsal.parameters]
    return {
        "parameters": rows,
        "losses": rehearsal.parts,
        "memory": rehearsal.memory,
        "steps": rehearsal.steps,
        "samples": rehearsal.samples,
        "tokens": rehearsal.tokens,
    }


def show_rehearsals(
    rehearsals: Mapping[str, Any], as_json: bool, written: str = "nothing was written"
) -> None:
    """Print what a dry run reports.

    Args:
        rehearsals: by stage; "" if there is only one.
        as_json: print JSON.
        written: what the dry run left behind.
    """
    if as_json:
        facts = {name: _rehearsal_facts(one) for name, one in rehearsals.items()}
        show_json(facts.get("", facts))
        return
    for name, one in rehearsals.items():
        if name:
            print(name[0].upper() + name[1:])
        _show_rehearsal(one)
    print(f"\nA dry run: {written}. Leave --dry-run out to train.")


def _show_rehearsal(rehearsal: Any) -> None:
    rows = [
        (part, f"{count:,}", f"{trained:,}" if trained else "frozen")
        for part, count, trained in rehearsal.parameters
    ]
    show_table("Who trains", ("part", "parameters", "trainable"), rows)
    memory = [(name, size(count)) for name, count in rehearsal.memory.items()]
    show_table("Memory of a step (estimate)", ("what", "size"), memory, sections=[len(memory) - 2])
    losses = ", ".join(f"{name} {value:.4g}" for name, value in rehearsal.parts.items())
    show_pairs(
        {
            "first batch": losses or "sizes without values: no step was taken",
            "longest sequence": f"{rehearsal.tokens} tokens",
            "the run": f"{rehearsal.samples} training samples, {rehearsal.steps} steps",
        }
    )
