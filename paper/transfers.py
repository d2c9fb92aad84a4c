"""Tables 3 and 7: encoders adapted with one LLM, read by others."""

from collections.abc import Callable
from dataclasses import dataclass

from paper.accuracy import (
    HOW,
    Line,
    accuracies,
    by_seed,
    cells_of,
    classes,
    difference,
    measured,
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
            HOW,
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
        gains = [difference(data, line["line"]) for line in lines]
        mean = sum(gain["mean"] for gain in gains if gain) / len(gains)
        domains = list(dict.fromkeys(row["domain"] for row in data["rows"]))
        cells = [by_seed(data, line["line"], d, "gain.accuracy") or [] for line in lines for d in domains]
        above = sum(sum(cell) > 0 for cell in cells)
        texts.append(
            f"With {name}: {100 * mean:+.1f} points, above zero-shot in {above} of {len(cells)} cells"
        )
    return ". ".join(texts) + "."


TABLE3 = Transfer(3, lambda plan: list(dict.fromkeys((plan.surrogates[0], plan.surrogates[-1]))))
"""The first and the last surrogate of the plan."""

TABLE7 = Transfer(7, lambda plan: list(plan.surrogates))
"""All surrogates of the plan."""
