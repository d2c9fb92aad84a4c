"""Settings that were removed: idle ones are dropped, others are refused with what to use instead."""

import json
from pathlib import Path

import pytest
import torch

from craft.core.errors import ConfigError
from craft.core.files import read_json, write_json
from craft.core.settings import REMOVED, REMOVED_VALUES, leaves, resolve_name
from craft.formats.artefact import Artefact
from craft.recipes.transfer import _kind
from craft.training.config import AdaptConfig, AlignConfig
from craft.training.run_folder import FREE, RunFolder

KINDS = (AdaptConfig, AlignConfig)
IDLE = [(name, value) for name, removed in REMOVED.items() for value in removed.idle]
REFUSED = [(name, value) for name, (values, _) in REMOVED_VALUES.items() for value in values]


def nested(name, value):
    *path, last = name.split(".")
    tree = {last: value}
    for section in reversed(path):
        tree = {section: tree}
    return tree


def test_what_is_removed_is_no_setting():
    for kind in KINDS:
        assert not set(leaves(kind)) & set(REMOVED)
    assert {"search"} == set(REMOVED_VALUES) <= set(leaves(AdaptConfig))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "value"), IDLE)
def test_a_removed_setting_that_did_nothing_is_dropped(kind, name, value, tmp_path):
    (tmp_path / "config.resolved.yaml").write_text(json.dumps({**nested(name, value), "seed": 3}))
    text = json.dumps(value)  # as the command line gives it
    for config in (
        kind.build(tmp_path / "config.resolved.yaml"),
        kind.build(nested(name, value), {"seed": 3}),
        kind.build(None, {name: value, "seed": 3}),
        kind.build(None, {name.replace("_", "-").replace(".", "__"): text, "seed": 3}),
        kind.build(None, {name.rpartition(".")[2]: text, "seed": 3}),
    ):
        assert config == kind(seed=3)


@pytest.mark.parametrize("name", list(REMOVED))
def test_a_removed_setting_that_did_something_is_refused(name, tmp_path):
    message = rf"setting '{name}' was removed .*'odd'.*: {REMOVED[name].instead}"
    (tmp_path / "c.yaml").write_text(json.dumps(nested(name, "odd")))
    for arguments in ((tmp_path / "c.yaml",), (nested(name, "odd"),), (None, {name: "odd"})):
        with pytest.raises(ConfigError, match=message):
            AdaptConfig.build(*arguments)
    with pytest.raises(ConfigError, match=f"setting '{name}' was removed"):
        resolve_name(name, AdaptConfig)


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_removed_value_is_refused(name, value, tmp_path):
    message = rf"'{name}' cannot be '{value}' any more: {REMOVED_VALUES[name][1]}"
    (tmp_path / "c.yaml").write_text(json.dumps(nested(name, value)))
    for arguments in ((tmp_path / "c.yaml",), (nested(name, value),), (None, {name: value})):
        with pytest.raises(ConfigError, match=message):
            AdaptConfig.build(*arguments)


def earlier(folder, **settings):
    """The folder of a run that an earlier version began with these settings, too."""
    config = AdaptConfig(out=str(folder))
    RunFolder(folder).open(config)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    record = read_json(folder / "run.json")
    config_then = record["config"]
    for name, value in settings.items():
        config_then[name] = {**config_then[name], **value} if isinstance(value, dict) else value
    write_json(folder / "run.json", record)
    return config


@pytest.mark.parametrize(("name", "value"), IDLE)
def test_a_run_of_an_earlier_version_goes_on(name, value, tmp_path):
    config = earlier(tmp_path / "run", **nested(name, value))
    assert RunFolder(tmp_path / "run").check(config, resume=True)


@pytest.mark.parametrize(("name", "value"), [*((name, "odd") for name in REMOVED), *REFUSED])
def test_a_run_that_used_what_was_removed_says_so(name, value, tmp_path):
    config = earlier(tmp_path / "run", **nested(name, value))
    if name in FREE:  # it never changed a result
        assert RunFolder(tmp_path / "run").check(config, resume=True)
        return
    with pytest.raises(ConfigError, match=rf"cannot be resumed.*'{name}'.*{value}.*version.*--overwrite"):
        RunFolder(tmp_path / "run").check(config, resume=True)


@pytest.mark.parametrize(("name", "value"), IDLE)
def test_encoders_of_both_versions_are_of_one_kind(name, value):
    def kind(**config):
        return _kind(Artefact(Path(), {"config": {"augment": 1.0, **config}}, {}, torch.zeros(1)))

    assert kind(**nested(name, value)) == kind()
    assert kind(**nested(name, "odd")) != kind() or name in FREE
