"""Each of the ten benchmarks, from its original layout on disk through `adapt` and `eval` to a report."""

import json

import pytest
from PIL import Image

from craft.data import BENCHMARKS
from replicas import REPLICAS, paint, parquet, png

FAST = ("--set", "batch_size=4", "--device", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_adapt_and_eval_end_to_end(craft, family, tmp_path, name):
    root, run = REPLICAS[name](tmp_path / "original"), tmp_path / "run"
    data = ("--data", name, "--root", root, "--partial")
    said = craft("adapt", family / "llama", *data, "--out", run, "--max-steps", "1", *FAST)
    assert said.status == 0, said.err
    assert f"--data {name} --root {root}" in said.out
    assert "partial: " in said.err
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
    root = (root, "--partial")
    said = craft("data", "check", "eurosat", "--root", *root, "--json").json
    assert said["notes"] == ["25 images; EuroSAT has 27000"]
    texts = [finding["text"] for finding in said["findings"]]
    assert texts[:2] == ["partial: 5 of 10 classes", "partial: 25 of 27000 images"]
    assert len(texts) == 3 and "60 % of the test answers (3 of 5) cannot be an exact match" in texts[2]
    assert craft("data", "check", "eurosat", "--root", *root, "--no-decode").status == 0
    said = craft("data", "prepare", "eurosat", "--root", *root, "--out", tmp_path / "m")
    assert said.status == 0 and "stratified: 20% of the pictures" in said.out and "fingerprint" in said.out
    assert (
        craft("data", "check", tmp_path / "m", "--json").json["fingerprint"]
        == craft("data", "check", "eurosat", "--root", *root, "--json").json["fingerprint"]
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


def test_a_part_of_a_benchmark_is_said_in_every_report(craft, family, tmp_path):
    root, run, out = REPLICAS["eurosat"](tmp_path / "original"), tmp_path / "run", tmp_path / "eval"
    data = ("--data", "eurosat", "--root", root)
    partial = "partial: 5 of 10 classes"
    refused = craft("adapt", family / "llama", *data, "--out", run).complaint
    assert "has only 5 of 10 classes of EuroSAT" in refused and "--partial" in refused
    assert "--partial" in craft("eval", family / "llama", *data).complaint
    assert "--partial" in craft("data", "check", "eurosat", "--root", root).complaint
    said = craft("adapt", family / "llama", *data, "--out", run, "--partial", "--max-steps", "1", *FAST)
    assert said.status == 0, said.err
    assert partial in said.err
    card = run / "encoder" / "README.md"
    assert partial in card.read_text()
    asked = ("--encoder", run, "--limit", "4", "--device", "cpu")
    said = craft("eval", family / "llama", *asked, "--out", out, "--card")
    assert f"note: eurosat: {partial}" in said.out
    report = json.loads((out / "report.json").read_text())
    assert report["caveats"][0] == report["reports"][0]["settings"]["caveats"][0] == partial
    assert card.read_text().count(partial) > 1
    zero = ("--like", run, "--limit", "4", "--device", "cpu", "--out", tmp_path / "zero")
    assert partial in craft("eval", family / "llama", *zero, "--json").json["caveats"]
    assert f"note: {partial}" in craft("compare", tmp_path / "zero", out).out
    assert partial in craft("compare", tmp_path / "zero", out, "--json").json["caveats"]
    page = tmp_path / "page.html"
    assert craft("report", out, run, "--out", page).status == 0 and page.read_text().count(partial) >= 2
    matrix = ("--encoders", run, "--backbones", family / "qwen2", "--device", "cpu", "--out", tmp_path / "t")
    assert f"note: eurosat: {partial}" in craft("transfer", *matrix).out
    assert partial in (tmp_path / "t" / "transfer.md").read_text()
    assert partial in (tmp_path / "t" / "transfer.json").read_text()
    alone = craft("eval", family / "llama", *data, "--partial", "--limit", "4", "--device", "cpu", "--json")
    assert partial in alone.json["caveats"]
    judged = craft(
        "judge", run, "--judge", "offline", "--limit", "2", "--device", "cpu", "--out", tmp_path / "j"
    )
    assert partial in judged.out, judged.err


def test_test_pictures_need_consent_to_train(craft, family, tmp_path):
    data = tmp_path / "trees"
    for split, shift in (("train", 0), ("test", 100)):
        for c, name in enumerate(("ash", "elm")):
            for n in range(6):
                paint(data / split / name / f"{n}.png", shift + 10 * c + n, 32)
    for n in range(3):
        Image.open(data / "test" / "elm" / f"{n}.png").save(data / "train" / "ash" / f"again-{n}.bmp")
    wanted = ("--data", data, "--max-steps", "1", *FAST)
    for verb in (("adapt", family / "llama"), ("baseline", "projector-ft", family / "llama")):
        refused = craft(*verb, *wanted, "--out", tmp_path / "run")
        assert "again-0.bmp" in refused.complaint and "--overlap drop" in refused.complaint
        assert not (tmp_path / "run").exists()
    assert "--overlap" in craft("adapt", family / "llama", *wanted, "--dry-run").complaint
    for overlap in ("drop", "train"):
        run = tmp_path / overlap
        said = craft("adapt", family / "llama", *wanted, "--out", run, "--overlap", overlap)
        assert said.status == 0, said.err
        record = json.loads((run / "run.json").read_text())
        assert (record["data"]["train"] < 13) == (overlap == "drop")  # 15, and two of them validate
        asked = craft("eval", family / "llama", "--encoder", run, "--device", "cpu", "--json")
        assert asked.status == 0 and asked.json["count"] == 12, asked.err


def test_unknown_splits_on_the_command_line(craft, family, tmp_path):
    for number, split in enumerate(("train", "test", "pixelate")):
        rows = [{"image": png(50 * number + n), "label": n % 2} for n in range(8)]
        parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", rows, {"label": ["ash", "elm"]})
    data, run = ("--data", tmp_path / "data", "--max-steps", "1", *FAST), tmp_path / "run"
    assert "--splits pixelate=none" in craft("adapt", family / "llama", *data, "--out", run).complaint
    assert "--splits pixelate=none" in craft("data", "check", tmp_path / "data").complaint
    assert craft("data", "check", tmp_path / "data", "--splits", "pixelate=none", "--json").json["test"] == 8
    said = craft("adapt", family / "llama", *data, "--out", run, "--splits", "pixelate=test")
    assert said.status == 0, said.err
    asked = craft("eval", family / "llama", "--encoder", run, "--device", "cpu", "--json")
    assert asked.status == 0 and asked.json["count"] == 16, asked.err
    alone = ("--data", tmp_path / "data", "--splits", "others=none", "--device", "cpu", "--json")
    assert craft("eval", family / "llama", *alone).json["count"] == 8
