"""Encoders for the tests of serving: towers that are near the base tower and answer differently."""

import copy
from pathlib import Path

import pytest
import torch

import craft
from craft.formats.artefact import save_artefact
from craft.models.lvlm import LVLM


def save_encoder(lvlm: LVLM, folder: Path, seed: int, base_counts=None, **manifest) -> Path:
    """An adapted encoder whose tower is the base tower with noise on its weights."""
    visual = copy.copy(lvlm.visual)
    visual._modules = dict(lvlm.visual._modules)
    visual.vision_tower = copy.deepcopy(lvlm.visual.vision_tower)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in visual.vision_tower.parameters():
            parameter += 0.15 * parameter.std(unbiased=False) * torch.randn(parameter.shape, generator=random)
    prior = torch.randint(1, 50, (lvlm.visual.codebook.size,), generator=random)
    about = {"surrogate": "craft-tiny/qwen2", "held_out": [], "data": {"name": f"domain {seed}"}}
    return save_artefact(folder, visual, prior=prior, base_counts=base_counts, manifest=about | manifest)


@pytest.fixture(scope="session")
def models():
    """The two LLMs of craft-tiny."""
    names = ("craft-tiny/llama", "craft-tiny/qwen2")
    return {name: craft.load(name, device="cpu", dtype="float32") for name in names}


@pytest.fixture(scope="session")
def encoders(models, tmp_path_factory):
    """Folders of two adapted encoders, `one` and `two`."""
    root = tmp_path_factory.mktemp("encoders")
    lvlm = models["craft-tiny/llama"]
    return {name: save_encoder(lvlm, root / name, seed) for seed, name in enumerate(("one", "two"))}


@pytest.fixture(scope="session")
def samples():
    """Questions of apparel's test split."""
    return craft.data.load_data("apparel").test[:100]
