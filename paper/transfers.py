"""Tables 3 and 7: encoders adapted with one LLM, read by others."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from craft.evaluation.metrics import interval_over_seeds
from paper.accuracy import (
    ALL,
    Line,
    accuracies,
    cells_of,
    classes,
    difference,
    how,
    measured,
    needed,
)
from paper.cells import CRAFT, Cell, Method
from paper.plan import Plan
from paper.publish import Data, footer
from paper.reported import NOTE, accuracy_table, reported
from paper.work import Work

ENDS = ("Qwen2-0.5B", "VILA-U-7B")
"""The two surrogates that the paper's Table 3 shows of Table 7."""


@dataclass(frozen=True)
class Transfer:
    """Table 3 or Table 7.

    Attributes:
        number: of the table.
        surrogates: picks the plan's surrogates that it shows.
    """

    number: int
    surrogates: Callable[[Plan], list[str]]

    def lines(self, plan: Plan) -> list[Line]:
        """Backbone by backbone: zero-shot, then each surrogate."""
        return [
            Line(
                f"{backbone}, {'zero-shot' if surrogate is None else 'adapted with ' + surrogate}",
                Method() if surrogate is None else Method(CRAFT, surrogate),
                backbone,
            )
            for backbone in plan.backbones
            for surrogate in (None, *self.surrogates(plan))
        ]

    def cells(self, plan: Plan) -> list[Cell]:
        """The cells of the table."""
        return cells_of(plan, self.lines(plan))

    def measure(self, work: Work) -> Data:
        """The table."""
        return measured(work, self.lines(work.plan))

    def page(self, data: Data) -> str:
        """The table as Markdown."""
        rows = reported()["table7"]
        if self.number == 3:
            rows = [row for row in rows if row["surrogate"] in ("-", *ENDS)]
        parts = [
            f"# Table {self.number}: one encoder, other LLMs\n",
            how(data),
            "A backbone behind an encoder that was adapted with another LLM was never trained with it.\n",
            accuracies(data, ("backbone", "method", "trained")) + "\n",
            _verdict(data) + "\n",
            "## Seen and unseen classes, codes\n",
            classes(data) + "\n",
            f"## The paper's Table {self.number}\n",
            NOTE + "\n",
            accuracy_table(rows, ("method", "surrogate", "backbone")) + "\n",
            footer(data),
        ]
        return "\n".join(parts)


def _verdict(data: Data) -> str:
    """Gains of the surrogate's own LLM and of others, and how many cells have one."""
    texts = []
    for same, name in ((True, "the surrogate's own LLM"), (False, "another LLM")):
        lines = [
            line
            for line in data["lines"]
            if line["trained"] and (line["trained"] == line["backbone"]) == same
        ]
        if not lines:
            continue
        gains = [gap["mean"] for line in lines if (gap := difference(data, line["line"])) is not None]
        over_seeds = np.mean([needed(data, line["line"], ALL, "gain.accuracy") for line in lines], axis=0)
        ends = interval_over_seeds(over_seeds.tolist())
        shown = (
            "" if ends is None else f" [95 % interval over seeds {100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]"
        )
        domains = list(dict.fromkeys(row["domain"] for row in data["rows"]))
        cells = [needed(data, line["line"], d, "gain.accuracy") for line in lines for d in domains]
        above = sum(sum(cell) > 0 for cell in cells)
        texts.append(
            f"With {name}: {100 * float(np.mean(gains)):+.1f} points{shown}, above zero-shot in {above} of "
            f"{len(cells)} cells"
        )
    return ". ".join(texts) + "."


TABLE3 = Transfer(3, lambda plan: list(dict.fromkeys((plan.surrogates[0], plan.surrogates[-1]))))
"""The first and the last surrogate of the plan."""

TABLE7 = Transfer(7, lambda plan: list(plan.surrogates))
"""All surrogates of the plan."""
