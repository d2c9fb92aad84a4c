"""`kill -9` at random moments, then --resume: docs/results/resume.json.

`python scripts/kill_and_resume.py [--kills 20] [--out FILE]` first adapts without an interruption. Then, for
each kill, it starts the same run in a new process, sends SIGKILL (every second time while a checkpoint is
being written), and resumes. It compares weights, code prior, and all of metrics.jsonl except the speed.
The exit status is 1 if a single byte differs.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import craft
from craft.core.files import is_leftover, write_json
from craft.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent


def start(out: Path, settings: dict[str, Any], resume: bool = False) -> int:
    """Start or resume the run in a new process, forked from this one, so that all imports are done."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with open(out.with_suffix(".log"), "a") as log:
            os.dup2(log.fileno(), 2)
            craft.adapt(out=out, resume=resume, **settings)
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(process: int, out: Path) -> None:
    """Wait for a process that must succeed."""
    _, status = os.waitpid(process, 0)
    if status:
        log = out.with_suffix(".log").read_text(encoding="utf-8")[-4000:]
        raise SystemExit(f"{log}\na run ended with status {os.waitstatus_to_exitcode(status)}")


def result(out: Path) -> dict[str, str]:
    """Hashes of the files that a run writes."""
    lines = [{k: v for k, v in line.items() if k != "samples_per_s"} for line in RunFolder(out).metrics()]
    names = ("model.safetensors", "prior.safetensors")
    files = {name: (out / "encoder" / name).read_bytes() for name in names}
    files["metrics.jsonl without speed"] = json.dumps(lines).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def half_written(out: Path) -> list[str]:
    """Names of partly written files and folders in the run folder."""
    folders = [folder for folder in (out, out / "checkpoints") if folder.is_dir()]
    return sorted(path.name for folder in folders for path in folder.iterdir() if is_leftover(path))


def caught_writing(process: int, out: Path) -> bool:
    """Stop a process and return True if a checkpoint is partly written now; otherwise let it continue."""
    os.kill(process, signal.SIGSTOP)
    _, status = os.waitpid(process, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        raise ProcessLookupError
    if writes_checkpoint(out):
        return True
    os.kill(process, signal.SIGCONT)
    return False


def writes_checkpoint(out: Path) -> bool:
    """Whether a checkpoint is partly written."""
    return any(name.startswith(".step-") for name in half_written(out))


def kill(process: int, out: Path, aim: str, rng: random.Random, duration: float) -> float:
    """Send SIGKILL at a random moment; return the seconds since the start, or -1 if the run ended before.

    Args:
        process: the id of the process.
        out: its run folder.
        aim: "anywhere" within the run's duration, or "checkpoint" for a moment when one is being written.
        rng: chooses the moment.
        duration: of the whole run, in seconds.
    """
    start, moment = time.monotonic(), rng.random() * duration
    target, pause, count, before = rng.randint(1, 4), rng.random() * 0.01, 0, False
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        if aim == "anywhere" and time.monotonic() - start >= moment:
            break
        if aim == "checkpoint":
            now = writes_checkpoint(out)
            count, before = count + (now and not before), now
            if now and count >= target:
                time.sleep(pause)
                try:
                    if caught_writing(process, out):
                        break
                except ProcessLookupError:
                    return -1.0
                pause /= 2  # the checkpoint was complete by then
        time.sleep(0.0005)
    else:
        return -1.0
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return time.monotonic() - start


def command(args: argparse.Namespace) -> str:
    """The command that repeats the measurement: all options except --out."""
    options = {name: value for name, value in vars(args).items() if name != "out"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return shlex.join(["python", "scripts/kill_and_resume.py", *words])


def killed_and_resumed(
    number: int, folder: Path, settings: dict[str, Any], seed: int, duration: float
) -> tuple[dict[str, Any], bool]:
    """One run that is killed and resumed: a row of the result without `identical`, and whether files remain.

    The resumed run is in `folder / "run-NUMBER"`.
    """
    rng = random.Random(f"{seed} {number}")
    aim = ("anywhere", "checkpoint")[number % 2]
    out, seconds = folder / f"run-{number}", -1.0
    while seconds < 0:  # a run that ended before its moment is started again
        shutil.rmtree(out, ignore_errors=True)
        seconds = kill(start(out, settings), out, aim, rng, duration)
    row = {
        "aim": aim,
        "seconds": round(seconds, 2),
        "steps_logged": len(RunFolder(out).metrics()),
        "half_written": [name.split(".")[1] for name in half_written(out)],
    }
    finish(start(out, settings, resume=True), out)
    return row, bool(half_written(out))


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--surrogate", default="craft-tiny/qwen2")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="for the moments")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/resume.json")
    return parser.parse_args()


def main() -> None:
    """Measure, print a line for each kill, and write the JSON."""
    args = options()
    torch.set_num_threads(1)  # before the first fork, which threads do not survive
    settings: dict[str, Any] = {
        "surrogate": args.surrogate,
        "data": args.data,
        "max_steps": args.steps,
        "batch_size": 8,
        "data.limit": 64,
        "checkpoint_every": 2,
        "device": "cpu",
    }
    kills = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        began = time.monotonic()
        finish(start(whole, settings), whole)
        duration = time.monotonic() - began
        expected = result(whole)
        print(f"unbroken: {duration:.1f} s", flush=True)
        for number in range(args.kills):
            row, leftovers = killed_and_resumed(number, Path(folder), settings, args.seed, duration)
            identical = result(Path(folder) / f"run-{number}") == expected and not leftovers
            kills.append({**row, "identical": identical})
            print(f"{number + 1}/{args.kills}: {kills[-1]}", flush=True)
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    same = sum(row["identical"] for row in kills)
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    write_json(
        args.out,
        {
            "command": command(args),
            "settings": settings,
            "commit": commit,
            "machine": {"python": platform.python_version(), "processor": platform.machine(), **versions},
            "unbroken_s": round(duration, 1),
            "result": expected,
            "identical": same,
            "kills": kills,
        },
    )
    print(f"{same} of {len(kills)} results identical; written to {args.out}")
    sys.exit(same != len(kills))


if __name__ == "__main__":
    main()
