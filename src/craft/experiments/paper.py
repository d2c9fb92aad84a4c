"""What the paper reports, to stand beside ours: paper.json, as printed, in percent."""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from craft.experiments.publish import table

NOTE = (
    "*Theirs*, at another scale: VILA-U-7B (K = 16384, 256 tokens per image) and ten benchmarks, as printed "
    "in the paper. Compare directions and proportions, not numbers."
)
"""What stands above every figure of the paper."""


@cache
def theirs() -> dict[str, Any]:
    """The paper's tables by name: "table1", "table2", "table4" to "table7" (Table 3 is a part of 7)."""
    return json.loads(files("craft.experiments").joinpath("paper.json").read_text(encoding="utf-8"))


def accuracy_table(rows: Sequence[dict[str, Any]], heads: Sequence[str]) -> str:
    """Rows with `accuracy` by benchmark as Markdown, their average last.

    Args:
        rows: of `theirs`.
        heads: keys of the columns in front.
    """
    benchmarks = list(rows[0]["accuracy"])
    lines = []
    for row in rows:
        figures = list(row["accuracy"].values())
        lines.append([*(row[head] for head in heads), *map(two, [*figures, sum(figures) / len(figures)])])
    return table([*heads, *benchmarks, "average"], lines)


def plain_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of one level as Markdown."""
    return table(
        list(rows[0]), [[two(v) if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    )


def two(value: float) -> str:
    """With two decimals, as the paper prints them."""
    return f"{value:.2f}"
