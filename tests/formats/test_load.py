"""`craft.load`: every way to name a model, and every way to get it wrong."""

import sys
import types

import pytest
import torch

from builders import tiny_images, tiny_lvlm, tiny_visual
from craft.core.errors import CheckpointError, CraftError
from craft.core.files import read_json
from craft.formats import names
from craft.formats.artefact import save_artefact
from craft.formats.load import load
from craft.formats.names import shipped
from craft.formats.native import save_native


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped") / "tiny"
    for kind in ("llama", "qwen2"):
        save_native(folder, kind, tiny_lvlm(kind))
    return folder


@pytest.fixture
def shelf(family, monkeypatch):
    """The family above in place of the shipped models."""
    monkeypatch.setattr(names, "_SHIPPED", family.parent)
    return family


@pytest.fixture
def hub(family, monkeypatch):
    """A hub that knows only `someone/tiny`; `asked` collects what was wanted of it."""
    asked = []

    def snapshot_download(repo_id, allow_patterns):
        asked.append((repo_id, allow_patterns))
        if repo_id != "someone/tiny":
            raise OSError("Repository Not Found\nfor url")
        return str(family)

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download)
    )
    return asked


def test_shipped_models_by_name(shelf):
    assert shipped() == ["tiny/llama", "tiny/qwen2"]
    lvlm = load("tiny/qwen2", device="cpu")
    assert lvlm.name == "tiny/qwen2" and lvlm.backbone.llm.config.model_type == "qwen2"


def test_every_shipped_model_has_all_its_files():
    assert {"craft-tiny/llama", "craft-tiny/qwen2"} <= set(shipped())
    for name in shipped():
        folder = names.shipped_folder(name)
        told = read_json(folder / "craft.json")
        own = () if "llm" in told else ("llm/config.json", "llm/tokenizer.json")
        table = (folder / "table").is_dir()
        if "llm" in told and not table:
            own = ("lora/model.safetensors",)
        reader = "table/model.safetensors" if table else "projector/config.json"
        for part in (*own, reader, "../visual/config.json"):
            assert (folder / part).is_file(), f"{name}: {part}"


def test_folders(family, tmp_path):
    assert load(family / "llama", "cpu").name == "tiny/llama"
    assert load(str(family / "llama"), "cpu", "bfloat16").backbone.llm.dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="llama, qwen2"):
        load(family, "cpu")
    save_native(tmp_path / "alone", "llama", tiny_lvlm())
    assert load(tmp_path / "alone", "cpu").name == "alone/llama"


def test_wrong_names_say_what_there_is(shelf):
    with pytest.raises(
        CheckpointError, match=r"Did you mean tiny/llama\? Shipped models: tiny/llama, tiny/qwen2"
    ):
        load("tiny/lama")
    with pytest.raises(CheckpointError, match=r"no model 'runs/x/y/z'.*Shipped models: tiny/llama"):
        load("runs/x/y/z")
    with pytest.raises(CheckpointError, match=r"no model '~no-such-user/x'"):
        load("~no-such-user/x")
    with pytest.raises(CheckpointError, match=r"no model './nothing'"):
        load("./nothing")


def test_what_is_not_a_model_is_named(shelf, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no model.*Shipped models: tiny/llama"):
        load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        load(tmp_path / "file")
    visual = tiny_visual()
    prior = visual.encode(tiny_images(1)).codes.new_zeros(32)
    save_artefact(tmp_path / "run" / "encoder", visual, prior=prior, manifest={})
    for folder in ("run", "run/encoder"):
        with pytest.raises(CheckpointError, match=r"with_encoder\(.*--encoder"):
            load(tmp_path / folder)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text('{"vision_tower_cfg": {}}')
    with pytest.raises(CheckpointError, match="vision_tower"):
        load(tmp_path / "half", "cpu")


def test_hub_ids(shelf, hub):
    assert load("someone/tiny/llama", "cpu").backbone.llm.config.model_type == "llama"
    repository, patterns = hub[-1]
    assert repository == "someone/tiny"
    assert "llama/*.safetensors" in patterns and "visual/*.json" in patterns
    assert not any(pattern.startswith("qwen2") for pattern in patterns)
    with pytest.raises(CheckpointError, match="family of models"):
        load("someone/tiny", "cpu")
    with pytest.raises(CraftError, match=r"'someone/else' is neither.*OSError: Repository Not Found for url"):
        load("someone/else", "cpu")


def test_mistyped_names_and_paths_never_ask_the_hub(shelf, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("tiny/lama", "runs/apparel", "../x", "/x/y", "a", "a/b/c/d"):
        with pytest.raises(CheckpointError, match="no model"):
            load(name)
    assert hub == []


def test_offline_hub_gives_an_error_that_helps():
    with pytest.raises(CraftError, match="Check the name and the connection"):
        load("nobody/nothing-at-all", "cpu")
