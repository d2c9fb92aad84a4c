"""`craft baseline` as a user has it, and what `craft eval` and `craft inspect` make of its result."""

import shutil

import pytest

from builders import tiny_backbone
from cli.conftest import FAST
from craft.formats.native import load_visual, save_native
from craft.models.lvlm import LVLM


@pytest.fixture(scope="module")
def continuous(family, tmp_path_factory):
    """The continuous twin of the tiny family, beside it (in a copy)."""
    family = shutil.copytree(family, tmp_path_factory.mktemp("models") / "tiny")
    visual = load_visual(family / "visual").unquantised()
    backbone = tiny_backbone()
    backbone.codebook_fingerprint = visual.codebook.fingerprint
    return save_native(family, "continuous", LVLM(visual, backbone, "tiny/continuous"), dtype="float32")


def test_tuned_evaluated_inspected(craft, continuous, pictures, tmp_path):
    out = tmp_path / "run"
    words = ("--data", pictures, "--out", out, "--max-steps", "2", *FAST)
    told = craft("baseline", "projector-ft", continuous, *words, "--json").json
    assert told["method"] == "projector-ft" and told["metrics"]["steps"] == 2
    report = craft("eval", continuous, "--encoder", out, "--data", pictures, "--json").json
    assert 0 <= report["accuracy"] <= 1 and report["count"] > 0
    found = craft("inspect", out, "--json").json
    assert found["changed_parts"] == ["projector"]
    assert found["encoder"]["method"] == "projector-ft" and found["encoder"]["parts"] == ["projector"]
    assert "tuned parts" in craft("inspect", out).out
    assert "none: a continuous LVLM" in craft("inspect", continuous).out
    again = craft("baseline", "projector-ft", continuous, *words, "--resume")
    assert again.status == 0 and f"Next: craft eval {continuous} --encoder {out}" in again.out
    assert "holds a run that is finished" in craft("baseline", "projector-ft", continuous, *words).complaint


def test_dry_run_writes_nothing(craft, continuous, pictures, tmp_path):
    words = ("--data", pictures, "--out", tmp_path / "run", "--dry-run", "--json", *FAST)
    for method, part in (("vision-ft", "vision_tower"), ("llm-lora", "llm")):
        told = craft("baseline", method, continuous, *words).json
        assert [row["part"] for row in told["parameters"] if row["trainable"]] == [part]
    assert not (tmp_path / "run").exists()


def test_mistakes(craft, family, continuous, pictures, encoder, tmp_path):
    words = ("--data", pictures, "--out", tmp_path / "run", *FAST)
    assert "is discrete" in craft("baseline", "vision-ft", family / "llama", *words).complaint
    assert "needs codes" in craft("baseline", "vision-ft-codebook", continuous, *words).complaint
    assert "There is no method 'lora'" in craft("baseline", "lora", continuous, *words).complaint
    assert "needs codes" in craft("adapt", continuous, *words).complaint
    told = craft("eval", continuous, "--encoder", encoder[0], "--data", pictures).complaint
    assert "was made for codebook" in told and "tower:" in told
    assert not (tmp_path / "run").exists()
