"""Shared by the benchmarks: options, tables, JSON. How they measure: `paper.bench.measure`."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is chatty; read when torch is loaded
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `paper` is not installed

import torch

from craft.core.files import write_json
from paper.bench.measure import Seconds, counted, fastest, peak_bytes, where

__all__ = ["Seconds", "arguments", "counted", "fastest", "peak_bytes", "report", "table"]


def arguments(
    description: str, more: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """The options that every benchmark has, and those that `more` adds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each variant; the fastest counts")
    parser.add_argument(
        "--threads", type=int, default=None, help="torch threads (default: torch's own choice)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0")
    parser.add_argument("--out", type=Path, default=None, help="write the numbers as JSON here")
    if more is not None:
        more(parser)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as an aligned Markdown table."""
    head = list(rows[0])
    cells = [head, ["---"] * len(head), *[[str(row[key]) for key in head] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells
    )


def report(
    title: str, rows: list[dict[str, Any]], facts: dict[str, Any], options: argparse.Namespace
) -> None:
    """Print the table and the facts, and write both as JSON if there is an --out."""
    machine = where(torch.device(options.device))
    print(f"\n{title}\n\n{table(rows)}\n")
    for name, value in {**facts, **machine}.items():
        print(f"{name}: {value}")
    if options.out:
        write_json(options.out, {"title": title, "rows": rows, "facts": facts, "machine": machine})
