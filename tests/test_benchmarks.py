"""The benchmarks run, at small sizes, and what they compare agrees."""

import json
import subprocess
import sys
from pathlib import Path

import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name: str, out: Path) -> dict:
    command = [sys.executable, str(BENCHMARKS / name), "--quick", "--repeats", "1", "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "| ---" in result.stdout
    return json.loads(out.read_text())


def test_search_gives_the_codes_of_the_reference(tmp_path):
    facts = run("search.py", tmp_path / "out.json")["facts"]
    assert facts["tokens with all codes equal"] == [1.0, 1.0]
    assert all(share < 1 for share in facts["share of the reference's peak memory"])


def test_answer_logits_gives_the_loss_of_the_full_sequence(tmp_path):
    facts = run("answer_logits.py", tmp_path / "out.json")["facts"]
    assert facts["loss difference"] <= 1e-6
    assert facts["largest gradient difference, relative"] <= 1e-5
    assert facts["memory ratio"] > 3


def test_peak_memory_is_counted(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _measure import peak_bytes

    def twice_a_mebibyte() -> None:
        first = torch.zeros(2**18)
        del first
        second, third = torch.zeros(2**18), torch.zeros(2**18)
        del second, third

    assert peak_bytes(twice_a_mebibyte, torch.device("cpu")) == 2 * 2**20
