"""Settings: defaults of the paper, files, overrides, and every mistake named."""

import pytest

from craft.core.errors import ConfigError
from craft.core.settings import Section, Settings, leaves, resolve_name
from craft.training.config import AdaptConfig, AlignConfig


def test_defaults():
    config = AdaptConfig()
    assert config.batch_size == 24
    assert config.optimizer.warmup_ratio == 0.03
    assert config.optimizer.weight_decay == 0
    assert config.losses.commitment.weight == 0.1
    assert config.contrastive_weight("classification") == config.contrastive_weight("vqa") == 0.0
    paper = AdaptConfig.build({"losses": {"contrastive": {"weight": None}}})
    assert (paper.contrastive_weight("classification"), paper.contrastive_weight("vqa")) == (1.0, 0.1)
    assert AdaptConfig.build({"losses": {"contrastive": {"weight": 0.5}}}).contrastive_weight("vqa") == 0.5


def test_file_and_overrides(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\noptimizer:\n  learning_rate: 1e-3\n  betas: [0.8, 0.9]\n")
    config = AdaptConfig.build(
        path, {"batch_size": "8", "losses.commitment.form": "cumulative", "max_steps": 5}
    )
    assert (config.seed, config.optimizer.learning_rate, config.optimizer.betas) == (3, 1e-3, (0.8, 0.9))
    assert (config.batch_size, config.losses.commitment.form, config.max_steps) == (8, "cumulative", 5)
    config.save(tmp_path / "again.yaml")
    assert AdaptConfig.build(tmp_path / "again.yaml") == config


def test_a_list_of_texts_is_read_as_yaml_and_a_text_is_not():
    overrides = {"lora.targets": "[q_proj, v_proj]", "data.name": "[a]", "trackers": "[tensorboard]"}
    config = AdaptConfig.build(None, overrides)
    assert config.lora.targets == ("q_proj", "v_proj") and config.data.name == "[a]"
    assert config.trackers == ("tensorboard",)


def test_a_text_that_looks_like_a_number_stays_a_text(tmp_path):
    """A run folder called 1e-4, in a file as on the command line."""
    tree = {"out": "1e-4", "data": {"name": "1e3"}, "optimizer": {"learning_rate": "1e-4"}}
    config = AdaptConfig.build(tree)
    assert (config.out, config.data.name, config.optimizer.learning_rate) == ("1e-4", "1e3", 1e-4)
    config.save(tmp_path / "c.yaml")
    assert AdaptConfig.build(tmp_path / "c.yaml") == config


def test_steps():
    assert AdaptConfig(max_steps=7).steps(100) == 7
    assert AdaptConfig(max_steps=None, epochs=2, batch_size=10).steps(101) == 20
    assert AdaptConfig(max_steps=None).steps(1) == 1


def test_names_of_overrides():
    assert resolve_name("learning_rate", AdaptConfig) == "optimizer.learning_rate"
    assert resolve_name("losses__commitment__weight", AdaptConfig) == "losses.commitment.weight"
    assert resolve_name("batch-size", AdaptConfig) == "batch_size"
    assert "data.unseen_fraction" in set(leaves(AdaptConfig))
    with pytest.raises(
        ConfigError, match=r"ambiguous; say losses\.sal\.weight or losses\.commitment\.weight"
    ):
        resolve_name("weight", AdaptConfig)
    with pytest.raises(ConfigError, match=r"Did you mean 'optimizer\.learning_rate'"):
        resolve_name("learning_rat", AdaptConfig)
    with pytest.raises(ConfigError, match="The settings are"):
        resolve_name("xyzzy", AdaptConfig)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"batchsize": 3}, "no setting 'batchsize'. Did you mean 'batch_size'"),
        ({"optimizer": {"lerning_rate": 3}}, "Did you mean 'optimizer.learning_rate'"),
        ({"batch_size": 0}, "'batch_size' cannot be 0"),
        ({"batch_size": "many"}, "'batch_size' cannot be 'many'"),
        ({"trainable": "some"}, "'trainable' cannot be 'some'"),
        ({"optimizer": 3}, "'optimizer' cannot be 3"),
    ],
)
def test_mistakes(tree, message):
    with pytest.raises(ConfigError, match=message):
        AdaptConfig.build(tree)


def test_bad_files(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        AdaptConfig.build(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must hold settings"):
        AdaptConfig.build(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        AdaptConfig.build(tmp_path / "bad.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert AdaptConfig.build(tmp_path / "empty.yaml") == AdaptConfig()
    with pytest.raises(ConfigError, match="is a section"):
        AdaptConfig.build({"optimizer": 3}, {"learning_rate": 1.0})


def test_a_section_set_in_part_keeps_the_other_defaults_of_its_verb(tmp_path):
    """`craft align` has a learning rate of its own; setting another key of the section must not reset it."""
    path = tmp_path / "c.yaml"
    path.write_text("optimizer:\n  weight_decay: 0.1\n")
    for config in (
        AlignConfig.build(None, {"optimizer.max_grad_norm": "1"}),
        AlignConfig.build({"optimizer": {"fused": True}}),
        AlignConfig.build(path),
    ):
        assert config.optimizer.learning_rate == AlignConfig().optimizer.learning_rate == 1e-4
    assert AlignConfig.build(path).optimizer.weight_decay == 0.1
    assert AlignConfig.build(path, {"learning_rate": "2e-4"}).optimizer.learning_rate == 2e-4


def test_defaults_of_nested_sections_are_kept_too():
    class Inner(Section):
        x: int = 0
        y: int = 0

    class Outer(Section):
        inner: Inner = Inner()
        z: int = 0

    class Verb(Settings):
        outer: Outer = Outer(inner=Inner(x=1, y=2), z=3)

    assert Verb.build(None, {"outer.inner.x": "5"}).outer == Outer(inner=Inner(x=5, y=2), z=3)
    with pytest.raises(ConfigError, match=r"'outer\.inner' cannot be 4"):
        Verb.build({"outer": {"inner": 4}})
    with pytest.raises(ConfigError, match=r"no setting 'outer\.inner\.w'"):
        Verb.build({"outer": {"inner": {"w": 4}}})
