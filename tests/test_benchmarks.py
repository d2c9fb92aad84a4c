"""The benchmarks run, at small sizes, and what they compare agrees."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def start(name: str, out: Path, *options: str) -> None:
    command = [
        sys.executable,
        str(BENCHMARKS / name),
        *(options or ("--quick", "--repeats", "1")),
        "--out",
        str(out),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert result.returncode == 0, result.stderr
    assert "| ---" in result.stdout


def run(name: str, out: Path, *options: str) -> dict:
    start(name, out, *options)
    return json.loads(out.read_text())


@pytest.mark.slow
def test_search_gives_the_codes_of_the_reference(tmp_path):
    facts = run("search.py", tmp_path / "out.json")["facts"]
    assert facts["tokens with all codes equal"] == [1.0, 1.0]
    assert all(share < 1 for share in facts["share of the reference's peak memory"])


@pytest.mark.slow
def test_answer_logits_gives_the_loss_of_the_full_sequence(tmp_path):
    facts = run("answer_logits.py", tmp_path / "out.json")["facts"]
    assert facts["loss difference"] <= 1e-6
    assert facts["largest gradient difference, relative"] <= 1e-5
    assert facts["FLOPs ratio"] == 64 / 8 and facts["memory ratio"] > 3  # 8 answer tokens in rows of 64


@pytest.mark.slow
def test_evaluation_gives_the_answers_of_one_by_one(tmp_path):
    facts = run("evaluation.py", tmp_path / "out.json")["facts"]
    assert facts["answers equal"] and facts["FLOPs ratio"] > 2.4


@pytest.mark.slow
def test_pruning_writes_a_file_for_each_part(tmp_path):
    start("pruning.py", tmp_path / "out.json", "--quick", "--repeats", "1", "--threads", "1")
    selection, flops, latency = (
        json.loads((tmp_path / f"out_{part}.json").read_text()) for part in ("selection", "flops", "latency")
    )
    rows = selection["rows"]
    assert {(row["tokens"], row["images"]) for row in rows} == {(64, 1), (64, 4)}
    assert {"full", "random", "divprune, as published", "search over γ"} <= {row["selection"] for row in rows}
    assert all(row["cpu ms per image"] >= 0 for row in rows)
    whole, *pruned = flops["facts"]["FLOPs ratio by keep"]["tiny"]
    assert whole == 1 and pruned == sorted(pruned, reverse=True)
    rows = latency["rows"]
    assert [row["keep"] for row in rows] == [1.0, 0.8, 0.6, 0.4] * 2 and all(row["ms"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pruning_saves_the_flops_that_it_should(tmp_path):
    """7B, 256 image and 50 text tokens: within 1 % of the ideal 0.840, 0.680 and 0.518."""
    facts = run("pruning.py", tmp_path / "out.json", "--part", "flops")["facts"]
    assert facts["FLOPs ratio by keep"]["7B"][1:] == pytest.approx([0.840, 0.680, 0.518], rel=0.01)


def test_peak_memory_is_counted(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _measure import peak_bytes

    def twice_a_mebibyte() -> None:
        first = torch.zeros(2**18)
        del first
        second, third = torch.zeros(2**18), torch.zeros(2**18)
        del second, third

    assert peak_bytes(twice_a_mebibyte, torch.device("cpu")) == 2 * 2**20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_search_at_real_size(tmp_path):
    """K=16384, d=1024, L=4: the reference's codes with at most an eighth of its memory."""
    facts = run("search.py", tmp_path / "out.json", "--repeats", "1")["facts"]
    assert facts["tokens with all codes equal"] == [1.0, 1.0]
    assert facts["share of the reference's peak memory"][0] <= 1 / 8


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_evaluation_at_full_size(tmp_path):
    """Five questions on each picture: the answers of one by one, for a fraction of the work."""
    facts = run("evaluation.py", tmp_path / "out.json", "--repeats", "1", "--images", "24")["facts"]
    work = facts["GFLOP a question"]  # counted: 0.672 and 0.252; one by one took 0.694 with [CLS]'s own keys
    assert facts["answers equal"] and work["one by one"] < 0.68
    assert work["+ images read once"] < 0.694 / 2.7


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_answer_logits_at_real_size(tmp_path):
    """V=151936: the same loss and gradient for a fraction of work and memory."""
    facts = run("answer_logits.py", tmp_path / "out.json", "--repeats", "1")["facts"]
    assert facts["loss difference"] <= 1e-5  # float32 sums over 151,936 logits in another order
    assert facts["largest gradient difference, relative"] <= 1e-5
    assert facts["FLOPs ratio"] == 316 / 8
    assert facts["memory ratio"] > 10


@pytest.mark.slow
def test_manifest_benchmark_runs_both_commands(tmp_path):
    facts = run("manifest.py", tmp_path / "out.json")["facts"]
    assert facts["rows in the manifest"] == facts["rows"] == 1000
    assert facts["peak MiB"] < 1024


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_scaling_trains_the_same_with_one_process_and_two(tmp_path):
    found = run("scaling.py", tmp_path / "out.json", "--quick", "--repeats", "1", "--data", "digits")
    assert [(row["way"], row["processes"]) for row in found["rows"]] == [
        ("one process", 1),
        ("DDP", 2),
        ("FSDP2", 2),
    ]
    assert found["facts"]["largest difference of a step's loss from one process, relative"] < 1e-3
