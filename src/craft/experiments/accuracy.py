"""Tables of accuracies: lines by domains, each beside its own zero-shot on the same questions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from craft.evaluation import grouped_interval
from craft.experiments.cells import CRAFT, ZERO_SHOT, Cell, Method
from craft.experiments.measures import fill
from craft.experiments.plan import Plan
from craft.experiments.publish import Data, percent, signed, table
from craft.experiments.work import Work, announce

ALL = "all"
"""In differences: the mean over domains."""


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        label: its name, unique in the table.
        method: how the LVLM came to be.
        backbone: which LVLM answers.
        tokens: "discrete" or "continuous": what the LLM reads.
    """

    label: str
    method: Method
    backbone: str
    tokens: str = "discrete"

    @property
    def zero_shot(self) -> Method:
        """What the line is compared with: the same LVLM, not adapted."""
        return Method(fraction=self.method.fraction)


def answer_cell(
    plan: Plan, line: Line, domain: str, seed: int, asked: str | None = None, zero_shot: bool = False
) -> Cell:
    """A line's answers, on its own domain or in the forgetting check on another one."""
    method = line.zero_shot if zero_shot else line.method
    other = asked is not None and asked != domain
    target = asked if asked is not None and other else domain
    home = target if method.name == ZERO_SHOT else domain  # zero-shot answers do not hang on the domain
    limit = plan.general_limit if other else plan.limit
    return Cell("answers", home, seed, line.backbone, method, target, limit)


def cells_of(plan: Plan, lines: Iterable[Line], forgetting: bool = False) -> list[Cell]:
    """All cells of a table."""
    found = []
    for domain in plan.domains:
        for seed in plan.seeds:
            for line in lines:
                found += [answer_cell(plan, line, domain, seed, zero_shot=zero) for zero in (True, False)]
                if line.method.name == CRAFT:
                    found.append(codes_cell(plan, line, domain, seed))
                for other in plan.general if forgetting and line.method.name != ZERO_SHOT else ():
                    if other != domain:
                        found += [
                            answer_cell(plan, line, domain, seed, other, zero) for zero in (True, False)
                        ]
    return list(dict.fromkeys(found))


def codes_cell(plan: Plan, line: Line, domain: str, seed: int) -> Cell:
    """How many codes a line's tower changed, whoever answers: counted behind its surrogate."""
    return Cell("codes", domain, seed, line.method.model, line.method, domain, plan.limit)


def measured(work: Work, lines: Sequence[Line], forgetting: bool = False, than: str | None = None) -> Data:
    """Every line on every domain and seed.

    Args:
        work: the plan under way.
        lines: of the table.
        forgetting: ask adapted LVLMs about the data sets of `plan.general` too.
        than: the label of a line that the others are compared with.

    Returns:
        `rows`: one for each line, domain and seed: accuracy, seen, unseen, lenient, unparseable, count, their
        zero-shot values (`before`), `codes` (share of level-1 codes changed), `general` (gain on other data
        sets).
        `differences`: how far each line is ahead of its zero-shot, and of `than`, for each domain and for
        "all" of them: mean and 95 % interval over the same questions (mean, low, high, in fractions).
    """
    plan, rows = work.plan, list[Data]()
    marks: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    pairs = [(domain, seed) for domain in plan.domains for seed in plan.seeds]
    for number, (domain, seed) in enumerate(pairs, start=1):
        announce(number, len(pairs), f"{domain}, seed {seed}")
        for line in lines:
            after = fill(work, answer_cell(plan, line, domain, seed))
            before = fill(work, answer_cell(plan, line, domain, seed, zero_shot=True))
            marks.setdefault((line.label, domain), []).append((_marks(after), _marks(before)))
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
        "lines": [told(line) for line in lines],
        "than": than,
        "rows": rows,
        "differences": _differences(lines, plan.domains, marks, than),
    }


FIGURES = ("accuracy", "seen", "unseen", "lenient", "unparseable", "count")
"""What is kept of a cell of answers."""


def told(line: Line) -> dict[str, Any]:
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


def _marks(found: Data) -> np.ndarray:
    return np.frombuffer(found["marks"].encode(), dtype=np.uint8).astype(np.float64) - ord("0")


def _changed(work: Work, line: Line, domain: str, seed: int) -> float | None:
    if line.method.name != CRAFT:
        return None
    return fill(work, codes_cell(work.plan, line, domain, seed))["first"]


def _general(work: Work, line: Line, domain: str, seed: int) -> float | None:
    """Accuracy on other data sets, adapted minus zero-shot, their mean; None for zero-shot."""
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


def _differences(
    lines: Sequence[Line],
    domains: Sequence[str],
    marks: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]],
    than: str | None,
) -> list[Data]:
    found = []
    for line in lines:
        for other in (ZERO_SHOT, than):
            if other is None or other == line.label or line.method.name == ZERO_SHOT:
                continue
            for domain in (*domains, ALL):
                gaps = [
                    after - (before if other == ZERO_SHOT else marks[other, name][seed][0])
                    for name in (domains if domain == ALL else (domain,))
                    for seed, (after, before) in enumerate(marks[line.label, name])
                ]
                low, high = grouped_interval(gaps)
                mean = float(np.mean([gap.mean() for gap in gaps]))
                found.append(
                    {"line": line.label, "than": other, "domain": domain, "mean": mean}
                    | {"low": low, "high": high}
                )
    return found


# Pages


def by_seed(data: Data, line: str, domain: str = ALL, figure: str = "accuracy") -> list[float] | None:
    """A figure of a line for each seed, on one domain or as the mean over all; None where one is missing."""
    rows = [row for row in data["rows"] if row["line"] == line and domain in (row["domain"], ALL)]
    found = []
    for seed in sorted({row["seed"] for row in rows}):
        values = [figure_of(row, figure) for row in rows if row["seed"] == seed]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        found.append(float(np.mean(known)))
    return found or None


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
    """The table: a line each, a column per domain, the mean, and the gain over zero-shot.

    Args:
        data: of `measured`.
        heads: columns in front: keys of `told`.
    """
    domains = list(dict.fromkeys(row["domain"] for row in data["rows"]))
    rows = []
    for line in data["lines"]:
        name = line["line"]
        cells = [_cell(by_seed(data, name, domain)) for domain in (*domains, ALL)]
        rows.append([*(str(line[head]) or "-" for head in heads), *cells, _gap(difference(data, name))])
    return table([*heads, *domains, "mean", "gain over zero-shot"], rows)


def classes(data: Data) -> str:
    """Seen and unseen classes, before and after, and what became of other data sets and of the codes."""
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
    """How far lines are ahead of one of them, by domain [95 % interval]."""
    domains = list(dict.fromkeys(row["domain"] for row in data["rows"]))
    rows = [
        [line["line"], *(_gap(difference(data, line["line"], than, domain)) for domain in (*domains, ALL))]
        for line in data["lines"]
        if difference(data, line["line"], than) is not None
    ]
    return table(["line", *domains, "mean"], rows)


def _cell(values: Sequence[float] | None) -> str:
    return "-" if values is None else percent(values)


def _gap(found: Data | None) -> str:
    if found is None:
        return "-"
    return f"{100 * found['mean']:+.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


HOW = """\
Strict exact match in percent, mean ± standard deviation over seeds; gains in points over the same LVLM
zero-shot, on the same questions [95 % interval over questions]. Seen and unseen: classes that training had,
and held out of it, zero-shot → adapted. Other data sets: points gained (or, with a minus, forgotten) on data
that the LVLM was not adapted to. Codes: share of level-1 codes of the test pictures that the adapted tower
changed.
"""
"""What the tables hold."""
