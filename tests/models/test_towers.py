"""[CLS] and the towers: patches never see [CLS], whatever it holds; the other reading is there to choose."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from craft.core.errors import CheckpointError
from craft.models.conv_stem import ConvStem, _convolve
from craft.models.towers import build_tower
from craft.models.vision_tower import VisionTower

SIGLIP = {
    "type": "siglip", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
}  # fmt: skip
HYBRID = {**SIGLIP, "type": "hybrid", "num_hidden_layers": 2, "stem_blocks": 5, "dim": 12}


@pytest.mark.parametrize("config", [SIGLIP, HYBRID], ids=["siglip", "hybrid"])
def test_patch_features_do_not_depend_on_cls(config: dict) -> None:
    torch.manual_seed(0)
    tower, pixels = build_tower(config), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features, cls = tower(pixels)
        tower.cls_token.normal_()
        again, other = tower(pixels)
    assert isinstance(tower, VisionTower) and tower.image_size == 32 and len(tower.layers) > 0
    assert torch.equal(features, again)
    assert not torch.equal(cls, other)
    assert features.shape == (2, tower.grid[0] * tower.grid[1], tower.dim) and cls.shape == (2, tower.dim)


@pytest.mark.parametrize("config", [SIGLIP, HYBRID], ids=["siglip", "hybrid"])
@pytest.mark.parametrize("reads", ["read-only", "symmetric"])
def test_leaving_cls_out_changes_no_bit_and_saves_its_operations(config: dict, reads: str) -> None:
    torch.manual_seed(0)
    tower, pixels = build_tower({**config, "cls_attention": reads}), torch.rand(2, 3, 32, 32)
    seen: list[int] = []
    for layer in tower.layers:
        layer.mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        features, _ = tower(pixels)
        both = len(seen)
        alone, nothing = tower(pixels, with_cls=False)
    assert nothing is None and torch.equal(alone, features)
    assert (len(seen) - both) * (2 if reads == "read-only" else 1) == both


def test_cls_reads_every_patch_and_teaches_the_layers() -> None:
    torch.manual_seed(0)
    tower, pixels = build_tower(SIGLIP), torch.rand(1, 3, 32, 32, requires_grad=True)
    _, cls = tower(pixels)
    cls.sum().backward()
    assert pixels.grad is not None and bool((pixels.grad.abs().sum(1) > 0).all())
    weights = {name: p.grad for name, p in tower.layers[0].named_parameters() if p.ndim > 1}
    assert [name for name, gradient in weights.items() if not gradient.any()] == []


def test_read_only_cls_equals_attention_under_a_mask() -> None:
    torch.manual_seed(0)
    tower, pixels = build_tower(SIGLIP), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        tower.cls_token.normal_()
        features, cls = tower(pixels)
        both = torch.cat([tower.cls_token.expand(2, 1, -1), tower.embeddings(pixels)], 1)
        mask = torch.zeros(1, 1, 17, 17)
        mask[..., 1:, 0] = float("-inf")  # no patch looks at [CLS]
        for layer in tower.layers:
            both = SiglipEncoderLayer.forward(layer, both, attention_mask=mask)
    torch.testing.assert_close(both[:, 0], cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[:, 1:], features, atol=1e-5, rtol=1e-5)


def test_symmetric_attention_lets_patches_see_cls() -> None:
    torch.manual_seed(0)
    tower, pixels = build_tower({**SIGLIP, "cls_attention": "symmetric"}), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        features, _ = tower(pixels)
        tower.cls_token.normal_()
        assert not torch.equal(features, tower(pixels)[0])


def test_the_last_siglip_layer_is_never_built() -> None:
    assert len(build_tower(SIGLIP).layers) == 3
    assert len(build_tower(HYBRID).layers) == 2


def test_unknown_or_incomplete_configs_are_refused() -> None:
    with pytest.raises(CheckpointError, match="siglip, hybrid"):
        build_tower({"type": "resnet"})
    with pytest.raises(CheckpointError, match="hidden_size"):
        build_tower({"type": "siglip", "num_hidden_layers": 2})


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (8, 8), (13, 9)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_stem_pads_as_tensorflow_does(size, kernel, stride):
    """ceil(size / stride) cells; the odd pixel of padding lies right and below."""
    conv, x = nn.Conv2d(4, 4, kernel, stride, groups=4), torch.randn(2, 4, *size)
    pads = []
    for side in reversed(size):
        pad = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [pad // 2, pad - pad // 2]
    found = _convolve(x, conv)
    assert found.shape[-2:] == tuple(-(-side // stride) for side in size)
    torch.testing.assert_close(found, conv(F.pad(x, pads)))


def test_the_stem_leaves_its_input_alone_and_learns():
    """Rectifying in place reaches no map that someone else reads."""
    stem, x = ConvStem(4), torch.randn(2, 3, 32, 32)
    before = x.clone()
    stem(x.requires_grad_()).square().sum().backward()
    assert torch.equal(x, before) and x.grad is not None
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in stem.parameters())


@pytest.mark.parametrize("count", [1, 16, 17, 40])
def test_the_stem_sees_every_picture_alone(count):
    """However many it takes at once, and however maps lie in memory."""
    stem, x = ConvStem(4), torch.randn(count, 3, 32, 32)
    found = stem(x)
    assert found.shape[0] == count
    torch.testing.assert_close(found, torch.cat([stem._maps(one) for one in x.split(1)]))
