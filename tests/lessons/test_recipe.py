"""The preset "paper", and what of a run departs from it."""

import pytest

from builders import tiny_lvlm
from craft.core.errors import ConfigError
from craft.data import load_data
from craft.evaluation.config import TransferConfig
from craft.lessons.recipe import departures, recipe_line
from craft.quantize.search import Choice
from craft.recipes.adapt import adapt
from craft.recipes.baseline import tune
from craft.training.config import AdaptConfig, BaselineConfig
from craft.training.lesson import Settled
from craft.training.run_folder import read_record

PAPER = {
    "losses.contrastive.weight": 1.0,
    "losses.retention.weight": 0.0,
    "trainable": "all",
    "blend": 1.0,
    "augment": 0.0,
}
OURS = {
    "losses.contrastive.weight": 0.0,
    "losses.retention.weight": 3.0,
    "trainable": "layers",
    "augment": 1.0,
}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", limit=40)


def test_a_preset_comes_before_file_and_flags(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("preset: paper\naugment: 0.5\nlosses: {retention: {weight: 1}}\nbatch_size: 8\n")
    config = AdaptConfig.build(file, {"batch_size": 4, "losses.commitment.weight": 0.2})
    assert (config.preset, config.trainable, config.blend) == ("paper", "all", 1)  # the preset's
    assert (config.augment, config.losses.retention.weight) == (0.5, 1)  # the file's
    assert (config.batch_size, config.losses.commitment.weight) == (4, 0.2)  # the flags'
    assert config.losses.contrastive.weight is None  # a section is merged, not replaced
    assert AdaptConfig.build(config) == config
    flag = AdaptConfig.build({"augment": 0.5}, {"preset": "paper"})
    assert (flag.augment, flag.trainable) == (0.5, "all")


def test_an_unknown_preset_names_those_that_exist():
    with pytest.raises(ConfigError, match="no preset 'papr'; there is: paper"):
        AdaptConfig.build({"preset": "papr"})
    with pytest.raises(ConfigError, match="no preset 'papr'; there is: paper"):
        TransferConfig.build({"preset": "papr"})
    with pytest.raises(ConfigError, match="no preset 'papr'; there is: paper"):
        TransferConfig.build({"adapt": {"preset": "papr"}})


def test_a_preset_over_a_complete_config_is_refused():
    """Its settings would change nothing, silently."""
    with pytest.raises(ConfigError, match="preset=paper comes too late"):
        AdaptConfig.build(AdaptConfig(), {"preset": "paper"})
    with pytest.raises(ConfigError, match=r"adapt\.preset=paper comes too late"):
        TransferConfig.build(TransferConfig(), {"adapt.preset": "paper"})


def test_a_matrix_with_the_preset_adapts_and_asks_as_the_paper():
    config = TransferConfig.build({"preset": "paper"}, {"adapt.augment": 0.5})
    assert config.ask.keep_ratio == 0.8
    assert config.adapt == AdaptConfig.build({"preset": "paper", "augment": 0.5})
    assert TransferConfig.build({"preset": "paper", "ask": {"keep_ratio": 1.0}}).ask.keep_ratio == 1.0


def test_departures_are_those_that_the_run_uses(digits):
    assert departures(AdaptConfig(), digits) == OURS
    paper = AdaptConfig.build({"preset": "paper"})
    assert departures(paper, digits) == {}
    assert departures(AdaptConfig.build(PAPER), digits) == {}  # by hand
    one = AdaptConfig.build({"preset": "paper", "losses.contrastive.weight": 0.5, "blend": 0.3})
    assert departures(one, digits) == {"losses.contrastive.weight": 0.5, "blend": 0.3}
    without_retention = departures(AdaptConfig.build({"losses.retention.weight": 0}), digits)
    assert without_retention["blend"] == 0.3  # few classes, by default
    assert not any("contrastive" in n or "retention" in n for n in departures(BaselineConfig(), digits))


def test_a_resumed_run_of_a_version_without_retention_departs_as_it_trains(digits):
    earlier = Settled(Choice("exact", ""), blend=0.3)
    assert "losses.retention.weight" not in departures(AdaptConfig(), digits, earlier)
    assert departures(AdaptConfig(), digits, earlier)["blend"] == 0.3


def test_the_line_at_the_start():
    assert recipe_line(OURS, None) == (
        "not the paper's: contrastive 0, retention 3, trainable layers, augment 1; --preset paper"
    )
    assert recipe_line({}, "paper") == "the paper's recipe (preset paper)"
    assert recipe_line({"blend": 0.3}, "paper") == "the paper's recipe (preset paper), except: blend 0.3"


def test_run_and_card_name_preset_and_departures(tmp_path, digits, capsys):
    lvlm = tiny_lvlm()
    settings = {"preset": "paper", "blend": 0.5, "losses.contrastive.weight": 0.0, "batch_size": 4}
    adapt(lvlm, digits, tmp_path / "run", max_steps=1, device="cpu", dtype="float32", **settings)
    record = read_record(tmp_path / "run" / "run.json")
    assert record["config"]["preset"] == "paper"
    assert record["departures"] == {"losses.contrastive.weight": 0.0, "batch_size": 4, "blend": 0.5}
    card = (tmp_path / "run" / "encoder" / "README.md").read_text()
    assert "Preset: paper. Not the paper's:" in card and "- blend: 0.5" in card
    assert "(preset paper), except: contrastive 0, batch_size 4, blend 0.5" in capsys.readouterr().err
    baseline = tune("vision-ft-codebook", lvlm, digits, tmp_path / "base", max_steps=1, preset="paper")
    losses = {"losses.commitment.weight": 0.0, "losses.contrastive.weight": 0.0}  # what makes it a baseline
    assert read_record(baseline.out / "run.json")["departures"] == losses
