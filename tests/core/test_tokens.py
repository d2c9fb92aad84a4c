"""VisionTokens keeps its parts in step."""

import dataclasses

import pytest
import torch

from craft.core.tokens import VisionTokens


def tokens(batch=3, **changes):
    values = {
        "features": torch.randn(batch, 4, 8),
        "codes": torch.zeros(batch, 4, 2, dtype=torch.long),
        "quantized": torch.randn(batch, 4, 8),
        "residual": torch.rand(batch, 4),
        "positions": torch.arange(4).expand(batch, 4),
        "grid": (2, 2),
        "cls": torch.randn(batch, 8),
    }
    return VisionTokens(**{**values, **changes})


def test_length_slice_and_device():
    whole = tokens()
    assert len(whole) == 3
    part = whole[1:]
    assert len(part) == 2
    assert torch.equal(part.quantized, whole.quantized[1:])
    assert torch.equal(part.cls, whole.cls[1:])
    assert part.grid == (2, 2)
    assert part.partial_sums is None
    assert whole.to("meta").codes.device.type == "meta"


def test_an_index_would_drop_the_batch_dimension():
    with pytest.raises(Exception, match="slice"):
        tokens()[0]


def test_gradient_survives_slices():
    features = torch.randn(3, 4, 8, requires_grad=True)
    tokens(features=features, quantized=features * 1.0)[:1].quantized.sum().backward()
    expected = torch.zeros(3, 4, 8)
    expected[:1] = 1
    assert torch.equal(features.grad, expected)


def test_parts_out_of_step_are_refused_by_name():
    with pytest.raises(ValueError, match=r"VisionTokens\.codes has shape"):
        tokens(codes=torch.zeros(3, 5, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="cls"):
        tokens(cls=torch.zeros(2, 8))


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokens().grid = (1, 4)
