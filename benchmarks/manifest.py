"""`craft data check` and `prepare` on a table of 100,000 rows, each with a picture file of its own.

    python benchmarks/manifest.py [--quick] [--out manifest.json]

Runs the command line as a user does, in processes of their own, without decoding pictures (`--no-decode`).
Time includes starting Python; memory is the process's largest resident set. Linux says how long a process was
ready and had no core, as other jobs were using them: "core at hand" is the time without that.
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
    """The table and its pictures, a thousand to a folder."""
    lines = []
    for n in range(rows):
        path = folder / "img" / f"{n // 1000:03d}" / f"{n:06d}.png"
        if n % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(png(n))
        row = {"image": path.relative_to(folder).as_posix(), "label": WORDS[n % 10]}
        if n % 2 == 0:  # half of them with a question of their own
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
    said = process.stderr.read()
    process.stdout.read()
    waited = 0.0
    if sys.platform == "linux":
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        waited = ready_without_a_core(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    wall, after = time.perf_counter() - began, os.times()
    if status != 0 or "done in" not in said:  # the line that progress ends with
        raise SystemExit(said)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "s": round(wall, 1),
        "core at hand, s": round(wall - waited, 1),
        "cpu s": round(cpu, 1),
        "peak MiB": round(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)),
    }


def ready_without_a_core(pid: int) -> float:
    """Seconds that a process (its main thread, which does the work here) stood in line for a core."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:  # a kernel that was built without it
        return 0.0


def main() -> None:
    """Write the data, run both commands, print the table."""
    options = arguments(__doc__ or "")
    rows = 1000 if options.quick else 100_000
    with tempfile.TemporaryDirectory() as place:
        table = write(Path(place), rows)
        found = {
            "check --no-decode": measured("data", "check", str(table), "--no-decode"),
            "prepare": measured("data", "prepare", str(table), "--out", str(Path(place) / "manifest")),
        }
        lines = (Path(place) / "manifest" / "samples.jsonl").read_bytes().count(b"\n")
    facts = {
        "rows": rows,
        "rows in the manifest": lines,
        "seconds together": round(sum(f["s"] for f in found.values()), 1),
        "seconds together, core at hand": round(sum(f["core at hand, s"] for f in found.values()), 1),
        "processor seconds together": round(sum(f["cpu s"] for f in found.values()), 1),
        "peak MiB": max(f["peak MiB"] for f in found.values()),
    }
    report(f"{rows:,} rows", [{"command": name, **f} for name, f in found.items()], facts, options)


if __name__ == "__main__":
    main()
