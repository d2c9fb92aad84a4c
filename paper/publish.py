"""A result on disk: JSON with its provenance, and the page and figures that are made from it."""

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft.core.errors import CheckpointError
from craft.core.files import atomic_write_text, check_writable, read_json, write_json
from craft.core.text import table_row
from paper.cells import Cell
from paper.plan import Plan, plan_for
from paper.work import Work

Data = dict[str, Any]

DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, StopIteration)
"""Errors that a page raises if a JSON file is damaged, or holds the result of something else."""


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Attributes:
        cells: what it needs, known in advance: for the estimate, and to be measured in parallel.
        measure: puts the cells together; the result is JSON-able.
        page: from the result to Markdown.
        pictures: draws the result as PNGs at a path and next to it; None if there are none.
        program: the command that runs it, before its name.
    """

    cells: Callable[[Plan], list[Cell]]
    measure: Callable[[Work], Data]
    page: Callable[[Data], str]
    pictures: Callable[[Data, Path], list[Path]] | None = None
    program: str = "python -m paper"


def publish(name: str, experiment: Experiment, plan: Plan, out: str | Path) -> list[Path]:
    """Measure an experiment and write NAME.json, NAME.md and, if it has images, NAME.png.

    An interrupted measurement continues where it stopped: cells are stored in `plan.work`.

    Args:
        name: of the files.
        experiment: what to run.
        plan: at what scale.
        out: the folder.

    Returns:
        The files that were written.

    Raises:
        CraftError: a model or data set is missing, or a file cannot be written.
    """
    check_writable(Path(out) / f"{name}.json")
    began, work = time.monotonic(), Work(plan)
    words = command(name, plan, experiment.program)
    result = experiment.measure(work)
    data = {
        "experiment": name,
        "command": words,
        **result,
        "provenance": {**work.provenance(), "seconds": round(time.monotonic() - began)},
    }
    return write_result(name, experiment, data, out)


def write_result(name: str, experiment: Experiment, data: Data, out: str | Path) -> list[Path]:
    """Write a result, and its page and figures."""
    folder = Path(out)
    write_json(folder / f"{name}.json", data)
    atomic_write_text(folder / f"{name}.md", experiment.page(data))
    written = [folder / f"{name}.json", folder / f"{name}.md"]
    drawn = experiment.pictures(data, folder / f"{name}.png") if experiment.pictures else []
    return [*written, *drawn]


def redraw(name: str, experiment: Experiment, out: str | Path) -> list[Path]:
    """Make page and figures again from NAME.json in a folder.

    Raises:
        CheckpointError: it is missing, damaged, or of something else.
    """
    path = Path(out) / f"{name}.json"
    try:
        return write_result(name, experiment, read_json(path), out)
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} is not a result that this CRAFT can draw ({type(error).__name__}: {error}); measure it "
            "again, without --redraw."
        ) from error


def command(name: str, plan: Plan, program: str = "python -m paper") -> str:
    """The command that makes the result again."""
    scale = plan.file or plan.scale
    usual = plan_for(scale, plan.quick, {})
    words = [*program.split(), name]
    words += ["--quick"] if plan.quick else []
    words += ["--scale", scale] if scale != "tiny" else []
    for field in ("domains", "surrogates", "backbones", "continuous", "explainer", "root"):
        value = getattr(plan, field)
        if value != getattr(usual, field):
            words += [f"--{field}", *(value if isinstance(value, tuple) else [str(value)])]
    if plan.seeds != usual.seeds:
        words += ["--seeds", ",".join(map(str, plan.seeds))]
    for field in ("limit", "device", "dtype"):
        if getattr(plan, field) != getattr(usual, field):
            words += [f"--{field}", str(getattr(plan, field))]
    for key, value in plan.adapt.items():
        if key not in usual.adapt or usual.adapt[key] != value:
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    return "\n".join(map(table_row, [head, ["---", *["---:"] * (len(head) - 1)], *rows]))


def percent(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation, in percent: "61.2 ± 0.8"."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{100 * mean:.1f}"
    deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}"


def points(gap: Data) -> str:
    """A difference with its interval, in points: "+1.2 [0.4, 2.0]"."""
    return f"{100 * gap['mean']:+.1f} [{100 * gap['low']:.1f}, {100 * gap['high']:.1f}]"


def escaped(text: str) -> str:
    """Any text as one line of a Markdown table cell, with all markup escaped."""
    plain = " ".join(text.split()).replace("\\", "\\\\")
    for sign in "|*_`[]<>#$":
        plain = plain.replace(sign, f"\\{sign}")
    return plain


def signed(values: Sequence[float]) -> str:
    """As `percent`, with a sign: "+4.2 ± 0.8"."""
    text = percent(values)
    return text if text.startswith("-") else f"+{text}"


def footer(data: Mapping[str, Any], one_seed: bool = False, limit: str = "limit") -> str:
    """The last lines of a page: how it was made, and what its figures are worth.

    Args:
        data: the result.
        one_seed: the page shows only the first of the plan's seeds.
        limit: the plan's field that limits the questions of such a page.
    """
    provenance = data["provenance"]
    plan, versions = provenance["plan"], provenance["versions"]
    seeds = f"seed {plan['seeds'][0]}" if one_seed else f"seeds {', '.join(map(str, plan['seeds']))}"
    most = "all" if plan[limit] is None else f"at most {plan[limit]}"
    lines = [
        f"Made by `{data['command']}` at commit `{(provenance['commit'] or 'unknown')[:10]}`; "
        f"{seeds}; {most} questions per domain and seed; torch "
        f"{versions['torch']}, {', '.join(provenance['devices'])}. "
        "All figures: the JSON file beside this page."
    ]
    if plan.get("quick"):  # older results do not have the field
        lines.append("**A quick run: it shows that everything works. Its figures mean nothing.**")
    return "\n\n".join(lines) + "\n"
