"""`craft adapt` and `craft baseline`, and how every training prints its dry run."""

import shlex
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from craft.cli.options import COMMON, TRAINING, Common, Training
from craft.cli.output import listed, show_json, show_line, show_pairs, show_table, size
from craft.core.text import percent
from craft.training.config import AdaptConfig

if TYPE_CHECKING:
    from craft.lessons.rehearsal import Rehearsal
    from craft.recipes.adapt import AdaptResult
    from craft.recipes.baseline import BaselineResult


def adapt(surrogate: str | None = None, *, training: Training = TRAINING, common: Common = COMMON) -> None:
    """Adapt the vision tower of a surrogate LVLM to your images; LLM, projector and codebook stay frozen.

    You can change any setting, as in --set learning_rate=1e-4, or with its full name, as in
    --losses.commitment.weight 0.2. The run folder's config.resolved.yaml lists all settings.

    Args:
        surrogate: a shipped model (craft-tiny/llama), a folder, or a hub id; its LLM scores the answers.
    """
    config = AdaptConfig.build(common.config, training.overrides(common))

    # Late, for these import torch: a mistake in the settings is reported at once.
    from craft.recipes.adapt import adapt as run
    from craft.recipes.adapt import rehearse

    result = _train(run, rehearse, surrogate, config, training, common)
    if result is None:
        return
    metrics = result.metrics
    codes = f"{metrics['codes_used']} of {len(result.prior)}"
    if images := metrics.get("codes_images"):  # an earlier version compared other images
        codes += f" on the {images} training images ({metrics['codes_used_before']} before)"
    _show_trained(
        result,
        common.json,
        facts={"out": str(result.out), "encoder": str(result.encoder)},
        paths={"adapted encoder": result.encoder},
        more={"level-1 codes in use": codes},
    )
    if not common.json:
        folder = shlex.quote(str(result.out))
        show_line(f"      (any backbone of this codebook; `craft inspect {folder}` names those at hand)")


def baseline(
    method: str, model: str | None = None, *, training: Training = TRAINING, common: Common = COMMON
) -> None:
    """Tune a model by one of the methods that CRAFT is compared with, on the same data, steps and settings.

    Methods: vision-ft and ldifs (for a continuous LVLM, such as craft-tiny/continuous-qwen2 or a LLaVA
    checkpoint), projector-ft and llm-lora (for any LVLM), vision-ft-codebook (for a discrete one). Zero-shot
    is `craft eval`. The settings are those of `craft adapt`, plus ldifs.weight and ldifs.layers.

    Args:
        method: vision-ft, projector-ft, ldifs, llm-lora or vision-ft-codebook.
        model: a shipped model, a folder, or a hub id.
    """
    from craft.recipes.baseline import find_baseline, rehearse, tune

    config_class = find_baseline(method, trains=True).config_class
    config = config_class.build(common.config, training.overrides(common))
    result = _train(partial(tune, method), partial(rehearse, method), model, config, training, common)
    if result is None:
        return
    facts = {"method": method, "out": str(result.out)}
    _show_trained(result, common.json, facts, paths={"tuned": result.out}, more={})


def _train(
    run: Callable[..., Any],
    rehearse: Callable[..., "Rehearsal"],
    model: str | None,
    config: AdaptConfig,
    training: Training,
    common: Common,
) -> Any:
    """The result of a run, in the main process alone if it is distributed; None after a dry run."""
    from craft.core.processes import leave

    budget = {"seed": common.seed, "max_steps": training.max_steps}
    if training.dry_run:
        show_rehearsals({"": rehearse(model, training.data, config=config, **budget)}, common.json)
        return None
    resumption = {"resume": training.resume, "overwrite": training.overwrite}
    result = run(model, training.data, training.out, config=config, **budget, **resumption)
    leave()
    return result


def _show_trained(
    result: "AdaptResult | BaselineResult",
    as_json: bool,
    facts: Mapping[str, Any],
    paths: Mapping[str, Any],
    more: Mapping[str, Any],
) -> None:
    """Print the result of a run.

    Args:
        result: the result.
        as_json: print JSON.
        facts: the first entries of the JSON.
        paths: the first lines of the text.
        more: lines that only this kind of result has.
    """
    metrics, config = result.metrics, result.config
    if as_json:
        outcome = {"held_out": list(result.held_out), "metrics": metrics}
        show_json({**facts, **outcome, "config": config.model_dump(mode="json")})
        return
    best, choice = metrics.get("best_step"), ""
    if best is not None:
        choice = (
            f"; the weights are those of step {best} (validation {percent(metrics['best_validation'])} %)"
        )
    show_pairs(
        {
            **paths,
            "steps": f"{metrics['steps']}{choice}",
            "minutes": f"{metrics['minutes']:.1f}",
            **more,
            "never trained on": listed(result.held_out),
        }
    )
    name, run = shlex.quote(config.surrogate), shlex.quote(str(result.out))
    data = shlex.quote(config.data.name)
    data += f" --root {shlex.quote(config.data.root)}" if config.data.root else ""
    show_line()
    show_line(f"Next: craft eval {name} --encoder {run} --data {data}")


def _rehearsal_facts(rehearsal: "Rehearsal") -> dict[str, Any]:
    """A dry run for JSON."""
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
    rehearsals: Mapping[str, "Rehearsal"], as_json: bool, written: str = "nothing was written"
) -> None:
    """Print the results of a dry run.

    Args:
        rehearsals: by stage; "" if there is only one.
        as_json: print JSON.
        written: a clause about the files that the dry run wrote.
    """
    if as_json:
        facts = {name: _rehearsal_facts(rehearsal) for name, rehearsal in rehearsals.items()}
        show_json(facts.get("", facts))
        return
    for name, rehearsal in rehearsals.items():
        if name:
            show_line(name[0].upper() + name[1:])
        _show_rehearsal(rehearsal)
    show_line()
    show_line(f"A dry run: {written}. Leave --dry-run out to train.")


def _show_rehearsal(rehearsal: "Rehearsal") -> None:
    rows = [
        (part, f"{count:,}", f"{trained:,}" if trained else "frozen")
        for part, count, trained in rehearsal.parameters
    ]
    show_table("What trains", ("part", "parameters", "trainable"), rows)
    memory = [(name, size(count)) for name, count in rehearsal.memory.items()]
    show_table("Memory of a step (estimate)", ("what", "size"), memory, sections=[len(memory) - 2])
    losses = ", ".join(f"{name} {value:.4g}" for name, value in rehearsal.parts.items())
    show_pairs(
        {
            "first batch": losses or "the model has no weights: no step was taken",
            "longest sequence": f"{rehearsal.tokens} tokens",
            "the run": f"{rehearsal.samples} training samples, {rehearsal.steps} steps",
        }
    )
