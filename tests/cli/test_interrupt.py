"""Ctrl-C on a running `craft adapt`, then the same command with --resume: the result of an unbroken run."""

import json
import signal
import subprocess
import sys
import time

import pytest

from cli.conftest import FAST
from craft.cli import main
from craft.training.run_folder import RunFolder


def words_of(family, pictures, steps):
    words = ("adapt", family / "llama", "--data", pictures, "--max-steps", steps, *FAST)
    return [str(word) for word in words]


def resumed_equals_unbroken(craft, words, out, at):
    """The interrupted run in `out`, resumed, has the files of a run that nothing stopped."""
    resumed = craft(*words, "--out", out, "--resume", "--json")
    whole = craft(*words, "--out", out.parent / "whole", "--json")
    assert resumed.status == whole.status == 0, resumed.err + whole.err
    assert f"resuming after step {at}" in resumed.err
    encoders = [run / "encoder" for run in (out, out.parent / "whole")]
    for name in ("model.safetensors", "prior.safetensors"):
        files = [encoder / name for encoder in encoders]
        assert files[0].read_bytes() == files[1].read_bytes()
    towers = [json.loads((encoder / "craft.json").read_text())["tower"] for encoder in encoders]
    assert towers[0] == towers[1]


def stopped(out, status, said, complaint):
    """What an interruption leaves: status 130, the way to go on, a run that says so. The step it came to."""
    assert status == 130, complaint
    assert said == "" and "Traceback" not in complaint
    assert "--resume" in complaint.strip().splitlines()[-1]
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "interrupted" and not (out / "encoder").exists()
    return record["interrupted_at"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_and_resumed_equals_unbroken(craft, family, pictures, tmp_path, monkeypatch, number):
    words, out, log = words_of(family, pictures, 6), tmp_path / "broken", RunFolder.log
    lines = []

    def log_and_signal(run, line):
        log(run, line)
        lines.append(line)
        if len(lines) == 3:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", log_and_signal)
        said = craft(*words, "--out", out)
    assert stopped(out, said.status, said.out, said.err) == 3
    resumed_equals_unbroken(craft, words, out, 3)


@pytest.mark.parametrize(
    "words, message",
    [
        ("adapt x", "--resume continues from the last checkpoint"),
        ("align x", "--resume continues from the last checkpoint"),
        ("eval x --out y", "with --resume"),
        ("data captions x", "The same command continues from there"),
        ("data statements x", "The same command continues from there"),
        ("data check x", "No partial result remains"),
    ],
)
def test_what_to_do_after_ctrl_c(words, message, capsys, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["craft.cli.main"], "app", stop)
    assert main(words.split()) == 130
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_stopped_at_any_time(craft, family, pictures, tmp_path, environment):
    steps, out = 150, tmp_path / "broken"
    words, metrics = words_of(family, pictures, steps), out / "metrics.jsonl"
    command = [sys.executable, "-m", "craft", *words, "--out", str(out)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.is_file() and metrics.read_text().count("\n") >= 3:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.002)
        said, complaint = process.communicate(timeout=120)
    at = stopped(out, process.returncode, said, complaint)
    assert 3 <= at < steps
    resumed_equals_unbroken(craft, words, out, at)
