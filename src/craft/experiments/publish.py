"""A result on disk: JSON with its provenance, and the page and picture that are made of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft.core.files import atomic_write_text, write_json
from craft.experiments.work import Plan, Work

Data = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Attributes:
        measure: runs it; the result is JSON-able.
        page: the result -> Markdown.
        picture: draws the result as PNG at a path; None where there is none.
    """

    measure: Callable[[Work], Data]
    page: Callable[[Data], str]
    picture: Callable[[Data, Path], Path] | None = None


def publish(name: str, experiment: Experiment, plan: Plan, out: str | Path) -> list[Path]:
    """Measure an experiment and write NAME.json, NAME.md and, where it has one, NAME.png.

    An interrupted measurement goes on where it stopped: cells are kept in `plan.work`.

    Args:
        name: of the files.
        experiment: what to run.
        plan: at what scale.
        out: the folder.

    Returns:
        What was written.

    Raises:
        CraftError: a model or data set is missing, or a place cannot be written to.
    """
    began, work = time.monotonic(), Work(plan)
    found = experiment.measure(work)
    data = {
        "experiment": name,
        "command": command(name, plan),
        **found,
        "provenance": {**work.provenance(), "seconds": round(time.monotonic() - began)},
    }
    return write_result(name, experiment, data, out)


def write_result(name: str, experiment: Experiment, data: Data, out: str | Path) -> list[Path]:
    """Write a result, and its page and picture."""
    folder = Path(out)
    write_json(folder / f"{name}.json", data)
    atomic_write_text(folder / f"{name}.md", experiment.page(data))
    written = [folder / f"{name}.json", folder / f"{name}.md"]
    return (
        written
        if experiment.picture is None
        else [*written, experiment.picture(data, folder / f"{name}.png")]
    )


def command(name: str, plan: Plan) -> str:
    """The command that makes the result again."""
    words = ["craft reproduce", name]
    usual = Plan()
    for field, flag in (("domains", "--domains"), ("backbones", "--backbones")):
        if getattr(plan, field) != getattr(usual, field):
            words.append(f"{flag} {' '.join(getattr(plan, field))}")
    if plan.surrogate != usual.surrogate:
        words.append(f"--surrogate {plan.surrogate}")
    if plan.seeds != usual.seeds:
        words.append(f"--seeds {','.join(map(str, plan.seeds))}")
    if plan.limit != usual.limit:
        words.append(f"--limit {plan.limit}")
    return " ".join(words)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation, in percent: "61.2 ± 0.8"."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{100 * mean:.1f}"
    deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}"


def footer(data: Mapping[str, Any]) -> str:
    """The last lines of a page: how it was made."""
    told = data["provenance"]
    plan, versions = told["plan"], told["versions"]
    return (
        f"Made by `{data['command']}` at commit `{(told['commit'] or 'unknown')[:10]}`; seeds "
        f"{', '.join(map(str, plan['seeds']))}; at most {plan['limit']} questions per domain and seed; torch "
        f"{versions['torch']}, {', '.join(told['devices'])}. All figures: the JSON file beside this page.\n"
    )
