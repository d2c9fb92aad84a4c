"""docs/paper_map.md covers the paper, and its defaults are true."""

import pytest
import yaml

from craft.core.settings import leaves
from craft.training.config import AdaptConfig, AlignConfig
from docs.reading import ROOT, settings, symbols

TEXT = (ROOT / "docs/paper_map.md").read_text(encoding="utf-8")
CONFIG = AdaptConfig()


def default(name: str) -> object:
    """The default of a setting by its dotted name."""
    value: object = CONFIG
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_every_equation_and_section_is_there():
    for wanted in ("Eq. 1", "Eq. 2", "Eq. 3", "Eq. 4", "Eq. 5"):
        assert wanted in TEXT
    for wanted in ("§3.1", "§3.2", "§3.3", "§4.1", "§7", "§8", "§9", "§10", "§11", "§12.1", "§13"):
        assert wanted in TEXT
    assert len(set(symbols(TEXT))) > 40


@pytest.mark.parametrize("name, value", sorted(set(settings(TEXT))))
def test_default_is_true(name, value):
    if name == "keep_ratio":  # an argument of LVLM.answer, not a setting
        return
    assert name in set(leaves(AdaptConfig)), f"AdaptConfig has no setting {name}"
    now = default(name)
    assert yaml.safe_load(value) == now, (
        f"docs/paper_map.md says {name}={value}; its default is {now!r}. Correct the map, and its reason."
    )


def test_alignment_defaults_are_those_of_section_8():
    config, o = AlignConfig(), AlignConfig().optimizer
    assert (o.learning_rate, o.warmup_ratio, o.weight_decay) == (1e-4, 0.03, 0.0)
    assert (config.epochs, config.max_steps, config.max_length) == (1.0, None, 8192)
    assert config.gradient_checkpointing and config.lora.rank == 0
    assert "128 rows" in TEXT and config.batch_size == 128


def test_every_loss_setting_is_explained():
    explained = {name for name, _ in settings(TEXT)}
    assert {name for name in leaves(AdaptConfig) if name.startswith("losses.")} <= explained
