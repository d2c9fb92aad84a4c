"""What release 0.1 wrote (tests/fixtures/release_0_1) still resumes, loads, answers and configures runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import craft
from craft.cli import main
from craft.core.files import read_json
from craft.core.tensors import hash_tensors, load_tensors
from craft.core.text import flat
from craft.formats.artefact import save_artefact
from craft.formats.load import load_artefact
from machine import machine_kind

FIXTURE = Path(__file__).parent / "fixtures" / "release_0_1"
EXPECTED = read_json(FIXTURE / "expected.json")
SAME_MACHINE = machine_kind() == EXPECTED["machine"]
"""Whether results must be equal to the bit; elsewhere sums are rounded otherwise."""
TRAINED_FOR_SIX_STEPS = {"atol": 1e-4, "rtol": 1e-3}


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A copy of the fixture as working folder (its paths are relative), on one thread as it was written."""
    folder, threads = shutil.copytree(FIXTURE, tmp_path / "release"), torch.get_num_threads()
    monkeypatch.chdir(folder)
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


def same_weights(written, expected, expected_hash):
    """Equal to the bit on the machine that wrote the fixture, close to it on any other."""
    written, expected = load_tensors(written), load_tensors(expected)
    assert hash_tensors(expected) == expected_hash
    if SAME_MACHINE:
        assert hash_tensors(written) == expected_hash
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(written[name], tensor, **TRAINED_FOR_SIX_STEPS)


def answers(encoder):
    """What the backbone of the fixture answers about one picture of each class."""
    lvlm = craft.load("models/tiny/qwen2", "cpu").with_encoder(encoder)
    pictures = [Image.open(path / "0.png") for path in sorted(Path("data/blobs").iterdir())]
    return lvlm.answer(pictures, ["What is it?"] * len(pictures), max_new_tokens=8)


def test_an_interrupted_adaptation_resumes_to_the_tower_of_the_unbroken_run(release, capsys):
    before = [json.loads(line) for line in Path("adapt/metrics.jsonl").read_text().splitlines()]
    assert main(["adapt", "--config", "adapt/config.resolved.yaml", "--resume"]) == 0
    assert "resuming after step 3 of 6" in capsys.readouterr().err
    lines = [json.loads(line) for line in Path("adapt/metrics.jsonl").read_text().splitlines()]
    assert lines[:3] == before and [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert any(line["retention"] > 0 for line in lines[3:])

    same_weights(
        "adapt/encoder/model.safetensors", "adapt-whole/encoder/model.safetensors", EXPECTED["tower"]
    )
    made, whole = load_artefact("adapt"), load_artefact("adapt-whole")
    assert made.manifest["held_out"] == whole.manifest["held_out"]
    assert int(made.prior.sum()) == sum(EXPECTED["prior"])
    if SAME_MACHINE:
        assert made.manifest["tower"] == EXPECTED["tower"]
        assert made.prior.tolist() == EXPECTED["prior"]


@pytest.mark.skipif(
    not SAME_MACHINE, reason="only the kind of machine that wrote the fixture rounds as it does"
)
def test_an_interrupted_alignment_resumes_to_the_projector_of_the_unbroken_run(release, capsys):
    assert main(["align", "--config", "align/config.resolved.yaml", "--resume"]) == 0
    assert "resuming after step 3 of 6" in capsys.readouterr().err
    same_weights(
        "align/backbone/projector/model.safetensors",
        "align-projector/model.safetensors",
        EXPECTED["projector"],
    )


def test_an_artefact_loads_answers_and_is_saved_again(release):
    artefact = load_artefact("adapt-whole")
    assert artefact.manifest["tower"] == EXPECTED["tower"]
    assert artefact.prior.tolist() == EXPECTED["prior"]
    said = answers("adapt-whole")
    if SAME_MACHINE:
        assert said == EXPECTED["answers"]

    visual = craft.load("models/tiny/qwen2", "cpu").with_encoder("adapt-whole").visual
    save_artefact(Path("again"), visual, prior=artefact.prior, manifest=artefact.manifest)
    again = load_artefact("again")
    assert again.manifest["tower"] == EXPECTED["tower"] and again.prior.tolist() == EXPECTED["prior"]
    assert answers("again") == said


def test_a_baseline_loads_and_answers(release):
    assert load_artefact("baseline").manifest["method"] == "projector-ft"
    said = answers("baseline")
    assert said != answers("adapt-whole")
    if SAME_MACHINE:
        assert said == EXPECTED["baseline_answers"]


@pytest.mark.parametrize("words", [("adapt",), ("baseline", "projector-ft"), ("align",)])
def test_a_resolved_configuration_configures_a_new_run(release, capsys, words):
    folder = words[0]
    status = main([*words, "--config", f"{folder}/config.resolved.yaml", "--out", "new", "--max-steps", "1"])
    assert status == 0, capsys.readouterr().err
    before, now = (flat(read_json(Path(run) / "run.json")["config"]) for run in (folder, "new"))
    changed = {name for name in before.keys() & now.keys() if before[name] != now[name]}
    assert changed == {"out", "max_steps"}


@pytest.mark.parametrize("words", [("adapt",), ("baseline", "projector-ft")])
def test_a_finished_run_is_returned_as_it_is(release, capsys, words):
    folder = "adapt-whole" if words == ("adapt",) else "baseline"
    before = (release / folder / "run.json").read_bytes()
    assert main([*words, "--config", f"{folder}/config.resolved.yaml", "--resume"]) == 0
    assert f"the run in {folder} is already finished" in capsys.readouterr().err
    assert (release / folder / "run.json").read_bytes() == before


def test_other_settings_are_still_refused(release, capsys):
    words = ("--config", "adapt/config.resolved.yaml", "--resume", "--seed", "1")
    assert main(["adapt", *words]) == 2
    assert "seed was 0 and is 1" in capsys.readouterr().err


def test_a_run_that_used_a_removed_setting_is_told_which(release, capsys):
    """The old command, given again: its file names the setting, and so does the run's record."""
    path = release / "adapt" / "config.resolved.yaml"
    old = path.read_text()
    path.write_text(old.replace("prefix_cache: false", "prefix_cache: true"))
    assert path.read_text() != old
    assert main(["adapt", "--config", "adapt/config.resolved.yaml", "--resume"]) == 2
    assert "'prefix_cache' was removed" in capsys.readouterr().err
    path.write_text(old)
    record = json.loads((release / "adapt" / "run.json").read_text())
    record["config"]["prefix_cache"] = True
    (release / "adapt" / "run.json").write_text(json.dumps(record))
    assert main(["adapt", "--config", "adapt/config.resolved.yaml", "--resume"]) == 2
    assert "prefix_cache" in capsys.readouterr().err


def test_the_fixture_names_no_machine():
    """Absolute paths would tie it to the machine that wrote it."""
    texts = [path for path in FIXTURE.rglob("*") if path.suffix in {".json", ".jsonl", ".yaml", ".md"}]
    assert len(texts) > 20
    for path in texts:
        assert not any(root in path.read_text() for root in ("/home", "/root", "/tmp", "/work")), path
