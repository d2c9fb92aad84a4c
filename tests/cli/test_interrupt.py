"""Ctrl-C on a running `craft adapt`, then the same command with --resume: the result of an unbroken run."""

import json
import signal
import subprocess
import sys
import time

from cli.conftest import FAST

STEPS = 150


def test_stopped_and_resumed_equals_unbroken(craft, family, pictures, tmp_path, environment):
    words = [str(word) for word in ("adapt", family / "llama", "--data", pictures)]
    words += ["--max-steps", str(STEPS), *FAST]
    broken = [*words, "--out", str(tmp_path / "broken")]
    metrics = tmp_path / "broken" / "metrics.jsonl"
    command = [sys.executable, "-m", "craft", *broken]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.is_file() and metrics.read_text().count("\n") >= 3:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.002)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == "" and "Traceback" not in err
    assert "--resume" in err.strip().splitlines()[-1]
    record = json.loads((tmp_path / "broken" / "run.json").read_text())
    assert record["status"] == "interrupted" and 3 <= record["interrupted_at"] < STEPS
    assert not (tmp_path / "broken" / "encoder").exists()

    resumed = craft(*broken, "--resume", "--json")
    whole = craft(*words, "--out", tmp_path / "whole", "--json")
    assert resumed.status == whole.status == 0, resumed.err + whole.err
    assert f"resuming after step {record['interrupted_at']}" in resumed.err
    for name in ("model.safetensors", "prior.safetensors"):
        files = [tmp_path / run / "encoder" / name for run in ("broken", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()
    towers = [
        json.loads((tmp_path / r / "encoder" / "craft.json").read_text())["tower"]
        for r in ("broken", "whole")
    ]
    assert towers[0] == towers[1]
