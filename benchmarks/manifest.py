"""`craft data check` and `prepare` on a table of 100,000 rows, each with its own image file.

    python benchmarks/manifest.py [--quick] [--out manifest.json]

Runs the commands as a user does, in new processes, without decoding images (`--no-decode`). The time
includes the start of Python; memory is the largest resident set of the process. Linux reports how long a
process was ready but had no core, because other jobs used them; "core at hand" is the time without that.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

from _measure import arguments, report

WORDS = ("oak", "elm", "fir", "ash", "yew", "birch", "beech", "maple", "larch", "alder")


def png(number: int) -> bytes:
    """An 8 x 8 grey PNG that differs for each number."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + struct.pack(">Q", number * 2654435761 % 2**64) for _ in range(8))
    head = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows, 1))
        + chunk(b"IEND", b"")
    )


def write(folder: Path, rows: int) -> Path:
    """The table and its images, a thousand to a folder."""
    lines = []
    for n in range(rows):
        path = folder / "img" / f"{n // 1000:03d}" / f"{n:06d}.png"
        if n % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(png(n))
        row = {"image": path.relative_to(folder).as_posix(), "label": WORDS[n % 10]}
        if n % 2 == 0:  # half of the rows have a question
            row["question"] = f"Which tree is number {n}?"
        lines.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "rows.jsonl"


def measured(*words: str) -> dict[str, float]:
    """Wall and processor seconds, and peak MiB, of one `craft` command."""
    command = [sys.executable, "-m", "craft", *words]
    before, began = os.times(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stdout is not None
    stderr = process.stderr.read()
    process.stdout.read()
    waited = 0.0
    if sys.platform == "linux":
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        waited = ready_without_a_core(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    wall, after = time.perf_counter() - began, os.times()
    if status != 0 or "done in" not in stderr:  # the line that progress ends with
        raise SystemExit(stderr)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "s": round(wall, 1),
        "core at hand, s": round(wall - waited, 1),
        "cpu s": round(cpu, 1),
        "peak MiB": round(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)),
    }


def ready_without_a_core(pid: int) -> float:
    """Seconds that a process waited for a core; only its main thread counts, which does the work here."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:  # this kernel does not report it
        return 0.0


def main() -> None:
    """Write the data, run both commands, print the table."""
    options = arguments(__doc__ or "")
    rows = 1000 if options.quick else 100_000
    with tempfile.TemporaryDirectory() as folder:
        table = write(Path(folder), rows)
        costs = {
            "check --no-decode": measured("data", "check", str(table), "--no-decode"),
            "prepare": measured("data", "prepare", str(table), "--out", str(Path(folder) / "manifest")),
        }
        lines = (Path(folder) / "manifest" / "samples.jsonl").read_bytes().count(b"\n")
    facts = {
        "rows": rows,
        "rows in the manifest": lines,
        "seconds together": round(sum(cost["s"] for cost in costs.values()), 1),
        "seconds together, core at hand": round(sum(cost["core at hand, s"] for cost in costs.values()), 1),
        "processor seconds together": round(sum(cost["cpu s"] for cost in costs.values()), 1),
        "peak MiB": max(cost["peak MiB"] for cost in costs.values()),
    }
    report(f"{rows:,} rows", [{"command": name, **cost} for name, cost in costs.items()], facts, options)


if __name__ == "__main__":
    main()
