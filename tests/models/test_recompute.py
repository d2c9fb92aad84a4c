"""Gradient checkpointing changes memory, not values."""

import pytest
import torch

from builders import tiny_lvlm
from craft.losses import surrogate_alignment
from craft.models.freezing import freeze_all_but
from craft.models.layers import recompute
from paper.bench.measure import counted, held_bytes

QUESTIONS, ANSWERS = ["what?", "is it a red bag or a blue one?"], ["a cat", "red"]


def step(lvlm, images):
    """The loss of one step."""
    inputs = lvlm.backbone.inputs(lvlm.visual(images), QUESTIONS, ANSWERS)
    hidden = lvlm.backbone.hidden_states(inputs)
    return surrogate_alignment(hidden, lvlm.backbone.lm_head, inputs["labels"])


@pytest.mark.parametrize("kind, tower", [("llama", "hybrid"), ("qwen2", "siglip")])
@pytest.mark.parametrize("what, share", [(True, 0.5), ("selective", 0.85)])
def test_same_bits_and_less_memory(kind, tower, what, share):
    lvlm, images = tiny_lvlm(kind, tower=tower), torch.randn(2, 3, 32, 32)
    parameters = freeze_all_but(lvlm, ["vision_tower.layers"])
    plain = step(lvlm, images)
    gradients = torch.autograd.grad(plain, parameters, allow_unused=True)
    with recompute(lvlm, what):
        again = step(lvlm, images)
        bytes_again = held_bytes(lambda: step(lvlm, images))
    assert torch.equal(plain, again) and any(one is not None and one.any() for one in gradients)
    for one, other in zip(gradients, torch.autograd.grad(again, parameters, allow_unused=True), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert bytes_again < share * held_bytes(lambda: step(lvlm, images))


def test_selective_repeats_no_matrix_product():
    lvlm, images = tiny_lvlm(tower="siglip"), torch.randn(2, 3, 32, 32)
    freeze_all_but(lvlm, ["vision_tower.layers"])

    def flops(what):
        def run():
            with recompute(lvlm, what):
                loss = step(lvlm, images)
            loss.backward()

        return counted(run)

    assert flops("selective") == flops(False) < flops(True)


def test_it_ends_with_its_block():
    lvlm, images = tiny_lvlm(), torch.randn(2, 3, 32, 32)
    before = lvlm.answer(images, QUESTIONS)
    with recompute(lvlm):
        assert lvlm.answer(images, QUESTIONS) == before  # generation needs its cache
    assert lvlm.answer(images, QUESTIONS) == before
    assert all("forward" not in vars(module) for module in lvlm.modules())
    with recompute(lvlm, False):
        assert all("forward" not in vars(module) for module in lvlm.modules())
