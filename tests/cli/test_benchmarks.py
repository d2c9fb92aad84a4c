"""Each of the ten benchmarks, from its original layout on disk through `adapt` and `eval` to a report."""

import json

import pytest

from craft.data import BENCHMARKS
from replicas import REPLICAS

FAST = ("--set", "batch_size=4", "--device", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_adapt_and_eval_end_to_end(craft, family, tmp_path, name):
    root, run = REPLICAS[name](tmp_path / "original"), tmp_path / "run"
    data = ("--data", name, "--root", root)
    said = craft("adapt", family / "llama", *data, "--out", run, "--max-steps", "1", *FAST)
    assert said.status == 0, said.err
    assert f"--data {name} --root {root}" in said.out
    manifest = json.loads((run / "encoder" / "craft.json").read_text())
    assert manifest["data"]["licence"] == BENCHMARKS[name].licence
    asked = craft(
        "eval", family / "qwen2", "--encoder", run, *data, "--limit", "4", "--device", "cpu", "--json"
    )
    assert asked.status == 0, asked.err
    assert asked.json["count"] == 4 and 0 <= asked.json["accuracy"] <= 1
    assert sorted(asked.json["reports"][0]["settings"]["held_out"]) == sorted(manifest["held_out"])


def test_a_benchmark_without_its_files_is_refused(craft, family, tmp_path):
    said = craft("adapt", family / "llama", "--data", "kvasir", "--out", tmp_path / "run")
    assert said.complaint.startswith("Kvasir needs a folder: --root DIR. To get it: kvasir-dataset.zip")
    assert "Expected kvasir-dataset/<class>" in craft("data", "check", "kvasir", "--root", tmp_path).complaint
    assert not (tmp_path / "run").exists()


def test_check_prepare_and_stats_of_a_benchmark(craft, tmp_path):
    root = REPLICAS["eurosat"](tmp_path / "original")
    said = craft("data", "check", "eurosat", "--root", root, "--json").json
    assert said["notes"] == ["25 images; EuroSAT has 27000"] and said["findings"] == []
    assert craft("data", "check", "eurosat", "--root", root, "--no-decode").status == 0
    said = craft("data", "prepare", "eurosat", "--root", root, "--out", tmp_path / "m")
    assert said.status == 0 and "stratified: 20% of the pictures" in said.out and "fingerprint" in said.out
    assert (
        craft("data", "check", tmp_path / "m", "--json").json["fingerprint"]
        == craft("data", "check", "eurosat", "--root", root, "--json").json["fingerprint"]
    )
    said = craft("data", "stats", tmp_path / "m", "--out", tmp_path / "s")
    assert said.status == 0 and "annual crop 5" in said.out
    assert {path.name for path in (tmp_path / "s").iterdir()} == {
        "stats.json",
        "stats.png",
        "contact_sheet.png",
    }
    wrong = craft("data", "check", tmp_path / "m", "--column", "answers=x").complaint
    assert "there is no field 'answers'" in wrong


def test_statements_options_and_their_way_into_a_manifest(craft, tmp_path):
    root, texts = REPLICAS["vqa-rad"](tmp_path / "original"), tmp_path / "s.jsonl"
    data = ("vqa-rad", "--root", root)
    assert "--model" in craft("data", "statements", *data, "--out", texts).complaint
    assert craft("data", "statements", *data, "--out", texts, "--rules", "--json").json["written"] == 20
    rows = [json.loads(line) for line in texts.read_text().splitlines()]
    rows[2]["statement"] = "Mine."
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = craft("data", "prepare", *data, "--out", tmp_path / "m", "--texts", texts, "--train-limit", "5")
    assert said.status == 0 and "at most 5 training images" in said.out
    assert '"text": "Mine."' in (tmp_path / "m" / "samples.jsonl").read_text()
    wrong = craft("data", "options", *data, "--out", tmp_path / "o.json", "--clip", tmp_path).complaint
    assert "options need classes" in wrong
    asked = ("--out", tmp_path / "c.jsonl", "--model", "m", "--count", "9")
    assert "--count must be 1 to 3" in craft("data", "captions", *data, *asked).complaint
