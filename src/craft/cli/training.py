"""How `craft adapt`, `align`, `baseline` and `demo` print results and dry runs of training."""

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from craft.cli.output import listed, show_json, show_pairs, show_table, size
from craft.core.text import percent

if TYPE_CHECKING:
    from craft.lessons.rehearsal import Rehearsal
    from craft.recipes.adapt import AdaptResult
    from craft.recipes.baseline import BaselineResult


def show_trained(
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
    print(f"\nNext: craft eval {name} --encoder {run} --data {data}")


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
            print(name[0].upper() + name[1:])
        _show_rehearsal(rehearsal)
    print(f"\nA dry run: {written}. Leave --dry-run out to train.")


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
