"""Tables of accuracies: a row per LVLM, each next to its own zero-shot on the same questions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from craft.core.progress import say
from craft.evaluation.metrics import ONE_SEED, SEVERAL_SEEDS, Group, interval
from craft.formats.code_cache import image_names
from paper.cells import CRAFT, ZERO_SHOT, Cell, Method, marks_of
from paper.measures import fill
from paper.plan import Plan
from paper.publish import Data, percent, points, signed, table
from paper.work import Work

ALL = "all"
"""In differences: the mean over domains."""

Marks = dict[tuple[str, str], dict[int, tuple[np.ndarray, np.ndarray]]]
"""By line and domain, then by seed: the marks of the line and of its zero-shot."""


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        label: its name, unique in the table.
        method: how the LVLM was made.
        backbone: which LVLM answers.
        tokens: "discrete" or "continuous": what the LLM reads.
    """

    label: str
    method: Method
    backbone: str
    tokens: str = "discrete"

    @property
    def zero_shot(self) -> Method:
        """The method that the line is compared with: the same LVLM, not adapted."""
        return Method(fraction=self.method.fraction)


def answer_cell(
    plan: Plan, line: Line, domain: str, seed: int, questions: str | None = None, zero_shot: bool = False
) -> Cell:
    """A line's answers, on its own domain or, in the forgetting check, on `questions` of another one."""
    method = line.zero_shot if zero_shot else line.method
    questions = questions or domain
    limit = plan.limit if questions == domain else plan.general_limit
    adapted_to = questions if method.name == ZERO_SHOT else domain  # the same zero-shot cell for all domains
    return Cell("answers", adapted_to, seed, line.backbone, method, questions, limit)


def cells_of(plan: Plan, lines: Iterable[Line], forgetting: bool = False) -> list[Cell]:
    """All cells of a table."""
    cells = []
    for domain, seed, line in product(plan.domains, plan.seeds, lines):
        others = plan.general if forgetting and line.method.name != ZERO_SHOT else ()
        for questions in (domain, *(name for name in others if name != domain)):
            cells += [answer_cell(plan, line, domain, seed, questions, zero) for zero in (True, False)]
        if line.method.name == CRAFT:
            cells.append(codes_cell(plan, line, domain, seed))
    return list(dict.fromkeys(cells))


def codes_cell(plan: Plan, line: Line, domain: str, seed: int) -> Cell:
    """How many codes a line's tower changed. The backbone does not matter; the cell names the surrogate."""
    return Cell("codes", domain, seed, line.method.model, line.method, domain, plan.limit)


def measured(work: Work, lines: Sequence[Line], forgetting: bool = False, than: str | None = None) -> Data:
    """Every line on every domain and seed.

    Args:
        work: the plan under way.
        work: the plan and its work folder.
        lines: of the table.
        forgetting: ask adapted LVLMs about the data sets of `plan.general` too.
        than: the label of a line that the others are compared with.

    Returns:
        `rows`: one for each line, domain and seed: accuracy, seen, unseen, lenient, unparseable, count, their
        zero-shot values (`before`), `codes` (share of level-1 codes changed), `general` (gain on other data
        sets).
        `differences`: how far each line is ahead of its zero-shot, and of `than`, for each domain and for
        "all" of them, on the same questions: mean and 95 % interval over images and seeds (`mean`, `low`,
        `high`, in fractions; see `craft.evaluation.metrics.interval`).
    """
    plan, rows = work.plan, list[Data]()
    marks: Marks = {}
    for domain, seed in product(plan.domains, plan.seeds):
        say(f"{domain}, seed {seed}")
        for line in lines:
            after = fill(work, answer_cell(plan, line, domain, seed))
            before = fill(work, answer_cell(plan, line, domain, seed, zero_shot=True))
            marks.setdefault((line.label, domain), {})[seed] = (marks_of(after), marks_of(before))
            rows.append(
                {
                    "line": line.label,
                    "domain": domain,
                    "seed": seed,
                    **{name: after[name] for name in FIGURES},
                    "before": {name: before[name] for name in FIGURES},
                    "codes": _changed(work, line, domain, seed),
                    "general": _general(work, line, domain, seed) if forgetting else None,
                }
            )
    return {
        "lines": [line_json(line) for line in lines],
        "than": than,
        "rows": rows,
        "differences": _differences(lines, plan.domains, marks, _images(work, lines), than),
    }


FIGURES = ("accuracy", "seen", "unseen", "lenient", "unparseable", "count")
"""The figures of an answers cell that a table stores."""


def line_json(line: Line) -> dict[str, Any]:
    """A line as JSON."""
    method = line.method
    return {
        "line": line.label,
        "method": method.name,
        "trained": method.model,
        "settings": dict(method.settings),
        "codebook": method.fraction,
        "backbone": line.backbone,
        "tokens": line.tokens,
    }


def _changed(work: Work, line: Line, domain: str, seed: int) -> float | None:
    if line.method.name != CRAFT:
        return None
    return fill(work, codes_cell(work.plan, line, domain, seed))["first"]


def _general(work: Work, line: Line, domain: str, seed: int) -> float | None:
    """The mean gain over zero-shot on other data sets; None for a zero-shot line."""
    others = [name for name in work.plan.general if name != domain]
    if line.method.name == ZERO_SHOT or not others:
        return None
    gains = []
    for other in others:
        after, before = (
            fill(work, answer_cell(work.plan, line, domain, seed, other, zero)) for zero in (False, True)
        )
        gains.append(after["accuracy"] - before["accuracy"])
    return float(np.mean(gains))


def _images(work: Work, lines: Sequence[Line]) -> dict[tuple[str, int], list[str]]:
    """The names by content of the images that are asked about, by domain and seed."""
    plan, line = work.plan, lines[0]
    return {
        (domain, seed): image_names([s.image for s in work.samples(answer_cell(plan, line, domain, seed))])
        for domain, seed in product(plan.domains, plan.seeds)
    }


def _differences(
    lines: Sequence[Line],
    domains: Sequence[str],
    marks: Marks,
    images: dict[tuple[str, int], list[str]],
    than: str | None,
) -> list[Data]:
    differences = []
    for line, other, domain in product(lines, (ZERO_SHOT, than), (*domains, ALL)):
        if other is None or other == line.label or line.method.name == ZERO_SHOT:
            continue
        groups = []
        for name in domains if domain == ALL else (domain,):
            for seed, (after, before) in marks[line.label, name].items():
                base = before if other == ZERO_SHOT else marks[other, name][seed][0]
                groups.append(Group(after - base, images[name, seed], seed))
        low, high = interval(groups, (-1.0, 1.0))
        mean = float(np.mean([np.mean(group.values) for group in groups]))
        gap = {"mean": mean, "low": low, "high": high}
        differences.append({"line": line.label, "than": other, "domain": domain, **gap})
    return differences


# Pages


def by_seed(data: Data, line: str, domain: str = ALL, figure: str = "accuracy") -> list[float] | None:
    """A figure of a line for each seed, on one domain or as the mean over all; None if one is missing."""
    rows = [row for row in data["rows"] if row["line"] == line and domain in (row["domain"], ALL)]
    means = []
    for seed in sorted({row["seed"] for row in rows}):
        values = [figure_of(row, figure) for row in rows if row["seed"] == seed]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        means.append(float(np.mean(known)))
    return means or None


def needed(data: Data, line: str, domain: str = ALL, figure: str = "accuracy") -> list[float]:
    """As `by_seed`.

    Raises:
        LookupError: a value is missing; none counts as 0.
    """
    values = by_seed(data, line, domain, figure)
    if values is None:
        raise LookupError(f"the line {line} has no {figure} on {domain}")
    return values


def figure_of(row: Data, figure: str) -> float | None:
    """A figure of a row; "before.NAME" is zero-shot, "gain.NAME" the difference."""
    kind, _, name = figure.rpartition(".")
    if kind == "before":
        return row["before"][name]
    if kind == "gain":
        after, before = row[name], row["before"][name]
        return None if after is None or before is None else after - before
    return row[name]


def difference(data: Data, line: str, than: str = ZERO_SHOT, domain: str = ALL) -> Data | None:
    """How far a line is ahead of another."""
    wanted = (line, than, domain)
    return next((d for d in data["differences"] if (d["line"], d["than"], d["domain"]) == wanted), None)


def accuracies(data: Data, heads: Sequence[str] = ("line",)) -> str:
    """The table: a row per line, a column per domain, the mean, and the gain over zero-shot.

    Args:
        data: of `measured`.
        heads: the first columns: keys of `line_json`.
    """
    domains = list(dict.fromkeys(row["domain"] for row in data["rows"]))
    rows = []
    for line in data["lines"]:
        name = line["line"]
        cells = [_cell(by_seed(data, name, domain)) for domain in (*domains, ALL)]
        rows.append([*(str(line[head]) or "-" for head in heads), *cells, _gap(difference(data, name))])
    return table([*heads, *domains, "mean", "gain over zero-shot"], rows)


def classes(data: Data) -> str:
    """Seen and unseen classes before and after, the change on other data sets, and codes changed."""
    rows = []
    for line in data["lines"]:
        name = line["line"]
        cells = [name]
        for figure in ("seen", "unseen"):
            before, after = (by_seed(data, name, ALL, key) for key in (f"before.{figure}", figure))
            cells.append(f"{_cell(before)} → {_cell(after)}" if line["method"] != ZERO_SHOT else _cell(after))
        general = by_seed(data, name, ALL, "general")
        cells.append("-" if general is None else signed(general))
        cells.append(_cell(by_seed(data, name, ALL, "codes")))
        rows.append(cells)
    return table(["line", "seen", "unseen", "other data sets", "level-1 codes changed, %"], rows)


def ahead(data: Data, than: str) -> str:
    """How far each line is ahead of the line `than`, by domain [95 % interval]."""
    domains = list(dict.fromkeys(row["domain"] for row in data["rows"]))
    rows = [
        [line["line"], *(_gap(difference(data, line["line"], than, domain)) for domain in (*domains, ALL))]
        for line in data["lines"]
        if difference(data, line["line"], than) is not None
    ]
    return table(["line", *domains, "mean"], rows)


def _cell(values: Sequence[float] | None) -> str:
    return "-" if values is None else percent(values)


def _gap(gap: Data | None) -> str:
    return "-" if gap is None else points(gap)


def covers(data: Data) -> str:
    """What the intervals of a page cover. Older results name it themselves: theirs are over questions."""
    several = len({row["seed"] for row in data["rows"]}) > 1
    return data.get("intervals") or (SEVERAL_SEEDS if several else ONE_SEED)


def how(data: Data) -> str:
    """What the tables show."""
    return f"""\
Strict exact match in percent, mean ± standard deviation over seeds; gains in points over the same LVLM
zero-shot, on the same questions [95 % interval, {covers(data)}]. Seen and unseen: classes
that training had, and held out of it, zero-shot → adapted. Other data sets: points gained (or, with a minus,
forgotten) on data that the LVLM was not adapted to. Codes: share of level-1 codes of the test pictures that
the adapted tower changed.
"""
