"""The visual tokenizer: exact sums, gradient, batching, and the [CLS] token."""

import pytest
import torch

from builders import tiny_visual
from craft.core.errors import CheckpointError, DataError
from craft.models.projector import Projector


def test_forward_is_the_codeword_sum_and_backward_is_straight_through() -> None:
    visual = tiny_visual("siglip")
    tokens = visual(torch.randn(2, 3, 32, 32), partial_sums=True)
    assert torch.equal(tokens.quantized, visual.codebook.lookup(tokens.codes))
    assert tokens.partial_sums is not None
    assert torch.equal(tokens.partial_sums[:, :, -1], tokens.quantized)
    tokens.features.retain_grad()
    upstream = torch.randn_like(tokens.quantized)
    tokens.quantized.backward(upstream)
    assert torch.equal(tokens.features.grad, upstream)


def test_batch_is_batches_of_one() -> None:
    visual, values = tiny_visual("siglip"), torch.randn(5, 3, 32, 32)
    whole, parts = visual.encode(values), visual.encode(values, batch_size=2)
    alone = torch.cat([visual.encode(values[i : i + 1]).codes for i in range(5)])
    assert torch.equal(whole.codes, parts.codes) and torch.equal(whole.codes, alone)
    assert torch.equal(whole.positions, torch.arange(16).expand(5, 16))
    assert not whole.quantized.requires_grad
    with pytest.raises(DataError):
        visual.encode([])


def test_cls_token_changes_no_patch() -> None:
    visual, values = tiny_visual("siglip"), torch.randn(2, 3, 32, 32)
    before = visual.encode(values)
    with torch.no_grad():
        visual.vision_tower.cls_token.normal_()
    after = visual.encode(values)
    assert torch.equal(before.features, after.features) and torch.equal(before.codes, after.codes)
    assert before.cls is not None and after.cls is not None and not torch.equal(before.cls, after.cls)


def test_bfloat16_tower_keeps_float32_search_and_temperature() -> None:
    visual = tiny_visual("siglip")
    visual.vision_tower.to(torch.bfloat16)
    tokens = visual.encode(torch.randn(2, 3, 32, 32))
    assert tokens.features.dtype == tokens.quantized.dtype == torch.float32
    assert torch.equal(tokens.quantized, visual.codebook.lookup(tokens.codes))
    assert visual.log_temperature.dtype == torch.float32


def test_projector_types() -> None:
    x = torch.randn(2, 5, 8)
    for kind, names in (
        ("linear", {"layers.weight", "layers.bias"}),
        ("mlp2x_gelu", {"layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"}),
    ):
        projector = Projector({"type": kind, "in": 8, "out": 12})
        assert set(projector.state_dict()) == names
        assert projector(x).shape == (2, 5, 12)
    for bad in ({"type": "resampler", "in": 8, "out": 12}, {"type": "linear", "in": 8}):
        with pytest.raises(CheckpointError):
            Projector(bad)
