"""Gradient checkpointing changes memory, not values."""

import pytest
import torch

from builders import tiny_lvlm
from craft.losses import surrogate_alignment
from craft.models.freezing import freeze_all_but
from craft.models.recompute import recompute

QUESTIONS, ANSWERS = ["what?", "is it a red bag or a blue one?"], ["a cat", "red"]


def step(lvlm, images):
    """Loss and gradients of one step, and the bytes that autograd kept for them."""
    kept: dict[int, int] = {}
    known = {tensor.untyped_storage().data_ptr() for tensor in [*lvlm.parameters(), *lvlm.buffers()]}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        inputs = lvlm.backbone.inputs(lvlm.visual(images), QUESTIONS, ANSWERS)
        hidden = lvlm.backbone.hidden_states(inputs)
        loss = surrogate_alignment(hidden, lvlm.backbone.lm_head, inputs["labels"])
    return loss, sum(kept.values())


@pytest.mark.parametrize("kind, tower", [("llama", "hybrid"), ("qwen2", "siglip")])
def test_same_bits_and_less_memory(kind, tower):
    lvlm, images = tiny_lvlm(kind, tower=tower), torch.randn(2, 3, 32, 32)
    parameters = freeze_all_but(lvlm, ["vision_tower.layers"])
    plain, bytes_plain = step(lvlm, images)
    gradients = torch.autograd.grad(plain, parameters, allow_unused=True)
    with recompute(lvlm):
        again, bytes_again = step(lvlm, images)
    assert torch.equal(plain, again)
    for one, other in zip(gradients, torch.autograd.grad(again, parameters, allow_unused=True), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert bytes_again < 0.5 * bytes_plain


def test_it_ends_with_its_block():
    lvlm, images = tiny_lvlm(), torch.randn(2, 3, 32, 32)
    before = lvlm.answer(images, QUESTIONS)
    with recompute(lvlm):
        assert lvlm.answer(images, QUESTIONS) == before  # generation needs its cache
    assert lvlm.answer(images, QUESTIONS) == before
    assert all("forward" not in vars(module) for module in lvlm.modules())
    with recompute(lvlm, on=False):
        assert all("forward" not in vars(module) for module in lvlm.modules())
