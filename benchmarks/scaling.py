"""One process against several at an equal global batch: `craft adapt`, started as docs/distributed.md says.

    python benchmarks/scaling.py [--quick] [--processes 2] [--device cpu] [--repeats 2] [--out scaling.json]

Every process has one thread (on a processor; on GPUs one GPU). Time is that of the steps alone, from
metrics.jsonl: the first two, the start of Python and the end of the run do not count. Ways take turns; of
each the fastest run counts. Efficiency is the time of one process by theirs and by how many they are.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _measure import arguments, report

CONFIGS = Path(__file__).parents[1] / "configs"
WAYS = {"DDP": "ddp.yaml", "FSDP2": "fsdp2.yaml"}
WARM = 2
"""Steps that do not count."""


def steps(
    method: str | None, processes: int, out: Path, settings: dict[str, Any], device: str
) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one run; `method` is a key of `WAYS`, or None for one process."""
    command = [sys.executable, "-m"]
    if method is not None:
        launch = ["--config_file", str(CONFIGS / WAYS[method]), "--num_processes", str(processes)]
        command += ["accelerate.commands.launch", *launch, "-m"]
    command += ["craft", "adapt", settings["surrogate"], "--data", settings["data"], "--device", device]
    command += ["--out", str(out), *(f"--set={name}={value}" for name, value in settings["set"].items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{method or 'one process'}: {' '.join(command)}\n{result.stderr[-3000:]}")
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def seconds_per_step(lines: list[dict[str, Any]], batch: int) -> float:
    """The mean between the steps `WARM` and the last but one; the last one also counts changed codes."""
    passed = [batch * line["step"] / line["samples_per_s"] for line in lines]
    return (passed[-2] - passed[WARM - 1]) / (len(lines) - 1 - WARM)


def more(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.set_defaults(repeats=2)
    parser.add_argument("--processes", type=int, default=2, help="processes that share the batch")
    parser.add_argument("--surrogate", default="craft-tiny/qwen2", help="any model of craft adapt")
    parser.add_argument("--data", default="apparel", help="any data of craft adapt")
    parser.add_argument("--batch", type=int, default=24, help="images per step, over all processes")
    parser.add_argument("--steps", type=int, default=30, help="steps of each run")


def main() -> None:
    """Time each method, print the table."""
    options = arguments(__doc__ or "", more)
    count, batch = (5, 4) if options.quick else (options.steps, options.batch)
    chosen = {"max_steps": count, "batch_size": batch, "probe_every": 10**6}
    if options.quick:
        chosen["data.limit"] = 40
    settings = {"surrogate": options.surrogate, "data": options.data, "set": chosen}
    methods: list[str | None] = [None, "DDP", "FSDP2"]
    best: dict[str | None, float] = {}
    lines: dict[str | None, list[dict[str, Any]]] = {}
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            for method in methods:
                out = Path(folder) / f"{method}-{repeat}"
                lines[method] = steps(method, options.processes, out, settings, options.device)
                seconds = seconds_per_step(lines[method], batch)
                best[method] = min(best.get(method, seconds), seconds)
    alone = best[None]
    rows = []
    for method, seconds in best.items():
        processes = 1 if method is None else options.processes
        rows.append(
            {
                "way": method or "one process",
                "processes": processes,
                "s per step": round(seconds, 4),
                "images/s": round(batch / seconds, 1),
                "speed": f"{alone / seconds:.2f}x",
                "efficiency": f"{alone / seconds / processes:.0%}",
            }
        )
    facts = {
        "model": options.surrogate,
        "data": options.data,
        "images per step": batch,
        "steps timed": count - 1 - WARM,
        "largest difference of a step's loss from one process, relative": max(
            abs(line["loss"] / reference["loss"] - 1)
            for method in methods[1:]
            for line, reference in zip(lines[method], lines[None], strict=True)
        ),
        "other load": load,
    }
    report("Scaling over processes", rows, facts, options)


if __name__ == "__main__":
    main()
