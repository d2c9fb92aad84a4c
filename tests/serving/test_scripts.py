"""The scripts that measure the server run, and write what they found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.stand_in_engine import stand_in
from serving.server import listening

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(script, *words) -> str:
    """The standard output of a script that must succeed."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_answers_before_an_engine_are_compared(models, tmp_path):
    """With the stand-in; docs/results/serving.json has the result with vLLM."""
    with listening(stand_in(models["craft-tiny/llama"])) as port:
        url = f"http://127.0.0.1:{port}"
        run("vllm_parity.py", "--engine", url, "--questions", 4, "--out", tmp_path / "a.json")
    result = json.loads((tmp_path / "a.json").read_text())["vllm"]
    assert result["answers"] == 12 and result["differences"] == []
    assert {value for key, value in result.items() if key.startswith("equal to")} == {12}


def test_the_server_is_measured(tmp_path):
    out = tmp_path / "a.json"
    out.write_text('{"vllm": {"answers": 1}}')
    few = ("--requests", 16, "--clients", 4, "--alone", 8, "--pictures", 16)
    run("measure_serve.py", *few, "--out", out)
    result = json.loads(out.read_text())
    assert result["vllm"] == {"answers": 1}  # parts that are not measured stay
    load = result["load"]
    assert load["requests"] == 16
    for fault in ("errors", "lost", "answers unlike LVLM.answer", "answered by another encoder"):
        assert load[fault] == 0
    assert 0 < result["memory"]["share"] < 1 and result["front"]["requests"] == 5
    assert result["ask"]["answers of the loop that are equal"] == result["ask"]["pictures of the loop"]
