"""What only whole processes can show: several of them by the launchers, and `kill -9` at random moments."""

import json
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from cli.conftest import FAST
from craft.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--config_file"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launch(words, environment):
    """A command in a process of its own."""
    command = [sys.executable, *map(str, words)]
    environment = {**environment, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, cwd=ROOT)


@pytest.mark.slow
def test_fsdp2_by_accelerate_launch(craft, family, pictures, tmp_path, environment):
    out = tmp_path / "run"
    verb = [
        "-m",
        "craft",
        "adapt",
        family / "llama",
        "--data",
        pictures,
        "--out",
        out,
        "--max-steps",
        "2",
        "--json",
    ]
    contrastive = ["--losses.contrastive.weight", "1", "--set", "checkpoint_every=1"]
    said = launch([*ACCELERATE, ROOT / "configs/fsdp2.yaml", *verb, *contrastive, *FAST], environment)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["metrics"]["steps"] == 2  # one process speaks for both
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["processes"]) == ("finished", 2)
    changed = {part for part, old in record["hashes_before"].items() if record["hashes_after"][part] != old}
    assert changed == {"vision_tower"}
    answered = craft("eval", family / "qwen2", "--encoder", out, "--data", pictures, "--limit", "8", "--json")
    assert answered.status == 0, answered.err

    alone = tmp_path / "alone"
    again = craft(
        "adapt", family / "llama", "--data", pictures, "--out", alone, "--max-steps", "2", *contrastive, *FAST
    )
    assert again.status == 0, again.err
    for one, other in zip(RunFolder(out).metrics(), RunFolder(alone).metrics(), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.slow
def test_align_with_fsdp2_by_accelerate_launch(craft, family, pictures, tmp_path, environment):
    """Both stages, the whole LLM in the second; the result of two processes is one, and is told once."""
    words = ["align", family / "llama", "--visual", family, "--data", pictures, "--max-steps", "2", *FAST]
    verb = ["-m", "craft", *words, "--out", tmp_path / "run", "--json"]
    said = launch([*ACCELERATE, ROOT / "configs/fsdp2.yaml", *verb], environment)
    assert said.returncode == 0, said.stderr
    assert set(json.loads(said.stdout)["metrics"]) == {"1", "2"}
    alone = craft(*words, "--out", tmp_path / "alone")
    assert alone.status == 0, alone.err
    for stage in ("stage-1", "stage-2"):
        lines = [RunFolder(tmp_path / name / stage).metrics() for name in ("run", "alone")]
        for one, other in zip(*lines, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    answered = craft("eval", tmp_path / "run", "--data", pictures, "--limit", "4", "--json")
    assert answered.status == 0, answered.err


@pytest.mark.slow
def test_ddp_by_torchrun_and_a_failing_process(family, pictures, tmp_path, environment):
    verb = ["-m", "craft", "adapt", family / "llama", "--data", pictures, "--max-steps", "2", *FAST]
    said = launch([*TORCHRUN, *verb, "--out", tmp_path / "run"], environment)
    assert said.returncode == 0, said.stderr
    assert "craft eval" in said.stdout and said.stdout.count("adapted encoder") == 1
    said = launch([*TORCHRUN, *verb, "--out", tmp_path / "bad", "--set", "batch_size=1"], environment)
    assert said.returncode != 0
    assert "craft: A batch of 1 cannot be divided" in said.stderr
    assert not (tmp_path / "bad").exists()  # said before anything is read


def test_the_kills_are_told_with_the_command_that_repeats_them():
    script = runpy.run_path(str(ROOT / "scripts/kill_and_resume.py"))
    given = Namespace(kills=6, surrogate="craft-tiny/llama", data="my data", steps=10, seed=3, out="x.json")
    assert script["command"](given) == (
        "python scripts/kill_and_resume.py --kills 6 --surrogate craft-tiny/llama --data 'my data' "
        "--steps 10 --seed 3"
    )


@pytest.mark.slow
def test_kill_9_and_resume(family, pictures, tmp_path, environment):
    out = tmp_path / "resume.json"
    words = ["scripts/kill_and_resume.py", "--kills", "6", "--steps", "10", "--out", out]
    said = launch([*words, "--surrogate", family / "llama", "--data", pictures], environment)
    assert said.returncode == 0, said.stdout + said.stderr
    found = json.loads(out.read_text())
    assert found["identical"] == len(found["kills"]) == 6
    aimed = [kill for kill in found["kills"] if kill["aim"] == "checkpoint"]
    assert len(aimed) == 3
    assert all("step-" in "".join(kill["half_written"]) for kill in aimed)  # died while one was written
