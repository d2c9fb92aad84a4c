"""Adaptation through a token table: the rule, what trains, what stays, and a resumed run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import craft
from craft.cli.adapt import show_rehearsals
from craft.cli.inspect import describe
from craft.core.errors import ConfigError
from craft.core.tensors import hash_tensors, load_tensors
from craft.lessons.objective import mean_square
from craft.lessons.table_rule import check_table_rule, set_table_rule
from craft.models.freezing import part_hashes
from craft.models.lvlm import LVLM
from craft.recipes.adapt import rehearse
from craft.recipes.baseline import tune
from craft.training.config import LossesConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "tar_small"
SETTINGS: dict[str, Any] = {
    "data": "apparel",
    "data.limit": 40,
    "batch_size": 4,
    "max_steps": 4,
    "eval_limit": 4,
    "device": "cpu",
    "dtype": "float32",
    "optimizer.learning_rate": 1e-2,
    "losses.retention.weight": 0,
    "blend": 1,
}


def load(name: str) -> LVLM:
    return craft.load(GOLDEN / f"Tar-{name}", device="cpu", dtype="float32")


def adapt(out: Path, rule: str, **more: Any) -> Any:
    settings = {**SETTINGS, "losses.table_gradient": rule, **more}
    return craft.adapt(surrogate=str(GOLDEN / "Tar-a"), out=out, **settings)


def weights(out: Path) -> str:
    return hash_tensors(load_tensors(out / "encoder" / "model.safetensors"))


@pytest.mark.parametrize("rule", ["affine", "soft", "identity"])
def test_only_the_tower_learns_and_another_llm_reads_its_codes(tmp_path: Path, rule: str) -> None:
    adapt(tmp_path, rule)
    run = json.loads((tmp_path / "run.json").read_text())
    before, after = run["hashes_before"], run["hashes_after"]
    assert {part for part in before if before[part] != after[part]} == {"vision_tower"}
    table = run["table"]
    assert table["rule"] == rule and table["milliseconds"] > 0
    assert ("r2" in table) == (rule == "affine")
    assert (len(table.get("temperatures", [])), len(table.get("gains", []))) == (
        (1, 1) if rule == "soft" else (0, 0)
    )
    base = load("b")
    other = base.with_encoder(tmp_path)
    images = sorted((GOLDEN / "images").glob("*.png"))
    tokens = other.encode(images)
    assert not torch.equal(tokens.codes, base.encode(images).codes)
    assert part_hashes(other)["llm"] == part_hashes(base)["llm"]
    text = [model.answer(None, ["What is a bag?"]) for model in (base, other)]
    assert text[0] == text[1]


@pytest.mark.parametrize("rule", ["affine", "soft"])
def test_a_resumed_run_is_the_unbroken_one(
    tmp_path: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt(tmp_path / "whole", rule, checkpoint_every=2)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    folder = tmp_path / "broken"
    for path in (*folder.glob("checkpoints/step-*4"), folder / "encoder"):
        shutil.rmtree(path)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    monkeypatch.setattr(  # a resumed run does not look for temperatures again
        "craft.lessons.table_rule._soft_scales", lambda *_: pytest.fail("fitted again")
    )
    adapt(folder, rule, checkpoint_every=2, resume=True)
    assert weights(folder) == weights(tmp_path / "whole")
    assert json.loads((folder / "run.json").read_text())["table"] == record["table"]


def test_another_rule_trains_another_tower(tmp_path: Path) -> None:
    rules = ("affine", "soft", "identity")
    assert len({weights(adapt(tmp_path / rule, rule).encoder.parent) for rule in rules}) == len(rules)


def test_rules_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    rules = {rule: {**SETTINGS, "losses.table_gradient": rule} for rule in ("identity", "soft")}
    with pytest.raises(ConfigError, match=r"identity needs an LLM as wide.*40 and 32"):
        craft.adapt(surrogate=str(GOLDEN / "Tar-b"), out=tmp_path, **rules["identity"])
    with pytest.raises(ConfigError, match="has a projector"):
        craft.adapt(surrogate="craft-tiny/qwen2", out=tmp_path, **rules["soft"])
    assert not list(tmp_path.iterdir())
    projector = craft.load("craft-tiny/qwen2", device="cpu")
    codebook = projector.visual.need_codes("this test")
    check_table_rule(projector.backbone, codebook, LossesConfig())
    lvlm = load("a")
    for rule, top_k, message in (("affine", 4, "is for.*soft"), ("soft", 257, "more than the 256 codes")):
        losses = LossesConfig.model_validate({"table_gradient": rule, "table_top_k": top_k})
        with pytest.raises(ConfigError, match=message):
            check_table_rule(lvlm.backbone, lvlm.visual.need_codes("this test"), losses)


def test_the_nearest_codes_alone_train_another_tower_than_all(tmp_path: Path) -> None:
    found = {k: weights(adapt(tmp_path / str(k), "soft", **{"losses.table_top_k": k}).out) for k in (4, None)}
    assert found[4] != found[None]
    gains = [json.loads((tmp_path / str(k) / "run.json").read_text())["table"]["gains"] for k in found]
    assert gains[0] != gains[1]


def test_a_poor_fit_warns(capsys: pytest.CaptureFixture[str]) -> None:
    lvlm = load("b")
    features = lvlm.encode(sorted((GOLDEN / "images").glob("*.png"))).features
    record = set_table_rule(lvlm, LossesConfig(), lambda: features)
    assert record is not None and record["r2"] == pytest.approx(0.647, abs=1e-3)
    assert "warning" not in capsys.readouterr().err
    with torch.no_grad():
        lvlm.backbone.embeddings.weight.normal_()
    record = set_table_rule(lvlm, LossesConfig(), lambda: features)
    assert record is not None and record["r2"] < 0.3
    assert "less than 0.3" in capsys.readouterr().err


def test_unit_codewords_make_distances_relative() -> None:
    assert mean_square(load("a").visual.codebook) == pytest.approx(1 / 32)
    assert mean_square(craft.load("craft-tiny/qwen2", device="cpu").visual.codebook) == 1


def test_baselines_of_a_projector_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the LLM of .*Tar-a has none"):
        tune("projector-ft", str(GOLDEN / "Tar-a"), data="apparel", out=tmp_path, device="cpu", limit=20)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("folder", "layout", "reads"),
    [("tar_small/Tar-a", "Tar", "token table"), ("unitok_small", "UniTok", "projector")],
)
def test_inspect_names_layout_and_reader(folder: str, layout: str, reads: str) -> None:
    description = describe(str(GOLDEN.parent / folder))
    assert (description["layout"], description["reads"]) == (layout, reads)


def test_a_dry_run_names_the_bytes_of_soft(capsys: pytest.CaptureFixture[str]) -> None:
    rules = {rule: {**SETTINGS, "losses.table_gradient": rule} for rule in ("affine", "soft")}
    done = {rule: rehearse(str(GOLDEN / "Tar-a"), **more) for rule, more in rules.items()}
    assert "table_gradient" not in done["affine"].memory
    memory = done["soft"].memory
    lvlm = load("a")
    rows, size = lvlm.backbone.embeddings.weight.shape[1] * 256, 4 * 81
    assert memory["table_gradient"] == 4 * (rows + 3 * size * 256)
    assert memory["total"] - memory["table_gradient"] == done["affine"].memory["total"]
    show_rehearsals({"": done["soft"]}, as_json=False)
    assert "table_gradient" in capsys.readouterr().out
