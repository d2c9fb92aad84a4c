"""The paper's own figures, shown below ours: reported.json, as printed, in percent."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from paper.publish import table

NOTE = (
    "*Theirs*, at another scale: VILA-U-7B (K = 16384, 256 tokens per image) and ten benchmarks, as printed "
    "in the paper. Compare directions and proportions, not numbers."
)
"""The note above every figure of the paper."""


@cache
def reported() -> dict[str, Any]:
    """The paper's tables by name: "table1", "table2", "table4" to "table7" (Table 3 is a part of 7)."""
    return json.loads(Path(__file__).with_name("reported.json").read_text(encoding="utf-8"))


def accuracy_table(rows: Sequence[dict[str, Any]], heads: Sequence[str]) -> str:
    """Rows with `accuracy` by benchmark as Markdown, their average last.

    Args:
        rows: of `reported`.
        heads: keys of the first columns.
    """
    benchmarks = list(rows[0]["accuracy"])
    lines = []
    for row in rows:
        figures = list(row["accuracy"].values())
        figures.append(sum(figures) / len(figures))
        lines.append([*(row[head] for head in heads), *map(two_decimals, figures)])
    return table([*heads, *benchmarks, "average"], lines)


def plain_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of plain values as Markdown."""
    lines = [[two_decimals(v) if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return table(list(rows[0]), lines)


def two_decimals(value: float) -> str:
    """A number as the paper prints it."""
    return f"{value:.2f}"
