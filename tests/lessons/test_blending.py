"""How much of what was trained is kept."""

import dataclasses
import json

import pytest

from craft import adapt
from craft.core.files import read_json
from craft.lessons.retention import BLEND_OF_FEW, BLEND_OF_MANY, FEW, kept_share
from craft.training.config import AdaptConfig
from tests.builders import tiny_lvlm
from tests.tiny_data import tiny_data

FAST = {"device": "cpu", "max_steps": 2, "batch_size": 4, "eval_limit": 2}


def labelled(classes: int):
    """Two training samples of each of so many classes."""
    one = tiny_data().train[0]
    names = [f"class {number}" for number in range(classes) for _ in range(2)]
    return [dataclasses.replace(one, id=f"{row}", label=name) for row, name in enumerate(names)]


@pytest.mark.parametrize(
    ("classes", "share"),
    [(2, BLEND_OF_FEW), (FEW - 1, BLEND_OF_FEW), (FEW, BLEND_OF_MANY), (90, BLEND_OF_MANY)],
)
def test_many_classes_keep_all(classes, share):
    assert AdaptConfig().blend is None
    assert kept_share(None, labelled(classes)) == share


def test_what_is_set_is_kept(capsys):
    assert kept_share(0.7, labelled(3)) == kept_share(0.7, labelled(50)) == 0.7
    assert not capsys.readouterr().err


def test_what_the_retention_loss_keeps_need_not_be_mixed_in(capsys):
    assert kept_share(None, labelled(3), 0.5) == 1.0 and kept_share(0.7, labelled(3), 0.5) == 0.7
    assert not capsys.readouterr().err


def test_without_labels_answers_count():
    questions = [dataclasses.replace(one, label=None, choices=(), correct=None) for one in labelled(2 * FEW)]
    many = [dataclasses.replace(one, answer=f"answer {row}") for row, one in enumerate(questions)]
    two = [dataclasses.replace(one, answer=("yes", "no")[row % 2]) for row, one in enumerate(questions)]
    assert (kept_share(None, many), kept_share(None, two)) == (BLEND_OF_MANY, BLEND_OF_FEW)


def test_run_and_artefact_tell_the_share(tmp_path):
    """And it is the share that a run with this number gives, to the bit."""
    none = {**FAST, "config": {"losses": {"retention": {"weight": 0}}}}
    default = adapt(tiny_lvlm(), tiny_data(), tmp_path / "auto", **none)
    explicit = adapt(tiny_lvlm(), tiny_data(), tmp_path / "given", **none, blend=BLEND_OF_FEW)
    assert read_json(tmp_path / "auto" / "run.json")["blend"] == BLEND_OF_FEW == default.metrics["blend"]
    card = (default.encoder / "README.md").read_text()
    assert f"- blend: {BLEND_OF_FEW}" in card
    tower = [json.loads((one.encoder / "craft.json").read_text())["tower"] for one in (default, explicit)]
    assert tower[0] == tower[1]
