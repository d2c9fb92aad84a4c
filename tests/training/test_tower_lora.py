"""LoRA on the vision tower: a plain tower comes out, changed by low-rank updates of its layers."""

import pytest
import torch

from builders import tiny_images, tiny_lvlm
from craft.formats.load import load_artefact
from craft.lessons.adapt import adaptation
from craft.recipes import adapt
from craft.training.checks import choose_trainable
from craft.training.config import AdaptConfig
from craft.training.lora import take_lora
from tiny_data import tiny_data

FAST = {"max_steps": 3, "batch_size": 2, "learning_rate": 1e-2, "device": "cpu", "trainable": "lora"}


@pytest.mark.parametrize("tower", ["hybrid", "siglip"])
def test_the_artefact_is_a_plain_tower_with_low_rank_updates(tmp_path, tower):
    base = tiny_lvlm(tower=tower)
    result = adapt(base, tiny_data(), tmp_path / "run", **FAST, lora__rank=2, blend=1.0)
    old, new = base.visual.vision_tower.state_dict(), load_artefact(result.out).state
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and all(name.startswith("layers.") and name.endswith(".weight") for name in changed)
    for name in changed:
        sizes = torch.linalg.svdvals(new[name] - old[name])
        assert sizes[2] < 1e-4 * sizes[0] and new[name].ndim == 2
    images = tiny_images(3)
    live = result.lvlm.encode(images)
    assert torch.equal(base.with_encoder(result.out).encode(images).codes, live.codes)
    assert not any("lora" in name for name, _ in result.lvlm.named_parameters())


def test_without_steps_it_is_the_base_tower():
    lvlm, images = tiny_lvlm(), tiny_images(2)
    before = lvlm.encode(images).features
    trained = choose_trainable(lvlm, AdaptConfig.build({"trainable": "lora"}), 0.0)
    assert trained and all("lora_" in name for name in trained)
    assert torch.equal(lvlm.encode(images).features, before)
    take_lora(lvlm.visual.vision_tower, merge=False)
    assert torch.equal(lvlm.encode(images).features, before)


def test_with_the_contrastive_term_cls_and_tau_train_too():
    trained = choose_trainable(tiny_lvlm(), AdaptConfig.build({"trainable": "lora"}), 1.0)
    assert {name for name in trained if "lora_" not in name} == {
        "visual.vision_tower.cls_token",
        "visual.log_temperature",
    }


def test_blend_keeps_a_share_of_the_update():
    weights = []
    for share in (1.0, 0.25):
        lvlm = tiny_lvlm()
        config = AdaptConfig.build({"device": "cpu", "trainable": "lora", "blend": share})
        lesson = adaptation(lvlm, tiny_data().train, config)
        torch.manual_seed(0)
        for name, parameter in lesson.trained.items():
            parameter.data = torch.randn(parameter.shape) if "lora_" in name else parameter.data
        lesson.blend()
        lesson.finish()
        weights.append(lvlm.visual.vision_tower.layers[0].mlp.fc1.weight)
    base = tiny_lvlm().visual.vision_tower.layers[0].mlp.fc1.weight
    torch.testing.assert_close(weights[1] - base, 0.25 * (weights[0] - base), atol=1e-5, rtol=1e-4)


def test_resumed_equals_unbroken(tmp_path):
    settings = {**FAST, "max_steps": 4, "checkpoint_every": 2, "augment": 0.0}
    whole = adapt(tiny_lvlm(), tiny_data(), tmp_path / "whole", **settings)
    adapt(tiny_lvlm(), tiny_data(), tmp_path / "broken", **{**settings, "max_steps": 4})
    last = tmp_path / "broken" / "checkpoints" / "step-00000004"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    run = tmp_path / "broken" / "run.json"
    run.write_text(run.read_text().replace('"finished"', '"running"'))
    again = adapt(tiny_lvlm(), tiny_data(), tmp_path / "broken", resume=True, **settings)
    files = [result.encoder / "model.safetensors" for result in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
