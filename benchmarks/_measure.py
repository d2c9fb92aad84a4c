"""Shared by the benchmarks: time, peak memory, tables, JSON."""

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is chatty; read when torch is loaded

import torch

from craft.core.files import write_json


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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Seconds:
    """Time of the fastest run: on the clock, and of all processor threads (which waiting does not add to)."""

    wall: float = float("inf")
    cpu: float = float("inf")


def fastest(variants: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, Seconds]:
    """Time each variant; they take turns, so that noise hits all of them alike."""
    best = {name: Seconds() for name in variants}
    for function in variants.values():
        function()  # warm caches and lazy initialisation
    for _ in range(repeats):
        for name, function in variants.items():
            _wait(device)
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            _wait(device)
            best[name].wall = min(best[name].wall, time.perf_counter() - wall)
            best[name].cpu = min(best[name].cpu, time.process_time() - cpu)
    return best


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """The most memory that torch held at one time during a call beyond what it held before.

    CPU: the running sum of the profiler's allocation records. CUDA: the allocator's own peak. Results are
    included; scratch space that a BLAS library takes for itself is not seen.
    """
    if device.type == "cuda":
        _wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = function()
        _wait(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = function()
    del result
    records = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((r.start_ns(), r.nbytes()) for r in records if r.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


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
    """Print the table and the facts, and write both as JSON where asked."""
    machine = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    print(f"\n{title}\n\n{table(rows)}\n")
    for name, value in {**facts, **machine}.items():
        print(f"{name}: {value}")
    if options.out:
        write_json(options.out, {"title": title, "rows": rows, "facts": facts, "machine": machine})
