"""Attention weights that were read off equal those computed by hand."""

import pytest
import torch

from builders import tiny_images, tiny_lvlm
from craft.core.errors import CraftError
from craft.pruning import prune_tokens
from paper.attention import cls_attention, received_attention

ASKED = ["What is shown in the picture?", "Answer in one letter only.", "How many?"]


@pytest.mark.parametrize("tower", ["hybrid", "siglip"])
@pytest.mark.parametrize("reads", ["read-only", "symmetric"])
def test_cls_attention_is_what_moves_cls(tower, reads):
    """Weights by hand from what the last layer gets; with [CLS] itself they sum to one."""
    visual = tiny_lvlm(tower=tower).visual
    visual.vision_tower.cls_attention = reads
    images = tiny_images(3)
    found = cls_attention(visual, images)
    assert found.shape == (3, 16) and bool((found > 0).all()) and bool((found.sum(1) < 1).all())
    assert torch.allclose(found, cls_attention(visual, images, batch_size=2), atol=1e-6)
    layer, got = visual.vision_tower.layers[-1], []
    keys = layer.self_attn.k_proj.register_forward_pre_hook(lambda _, x: got.append(x[0]))
    visual.vision_tower(images)
    keys.remove()
    mixed = torch.cat(got, dim=1)  # layer-normed [CLS] and patches
    assert mixed.shape[1] == 17
    heads = layer.self_attn.num_heads
    q, k = (p(mixed).unflatten(-1, (heads, -1)) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj))
    scores = torch.einsum("bhd,bnhd->bhn", q[:, 0], k) / q.shape[-1] ** 0.5
    assert torch.allclose(found, scores.softmax(-1).mean(1)[:, 1:], atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_received_attention_is_that_of_the_last_token(kind):
    lvlm = tiny_lvlm(kind)
    tokens = lvlm.encode(tiny_images(3))
    usual = lvlm.backbone.llm.config._attn_implementation
    found = received_attention(lvlm.backbone, tokens, ASKED, layer=1)
    assert lvlm.backbone.llm.config._attn_implementation == usual
    assert found.shape == (3, 16) and bool((found > 0).all()) and bool((found.sum(1) < 1).all())
    alone = torch.cat(
        [received_attention(lvlm.backbone, tokens[i : i + 1], ASKED[i : i + 1], 1) for i in range(3)]
    )
    assert torch.allclose(found, alone, atol=1e-5)
    assert not torch.allclose(found, received_attention(lvlm.backbone, tokens, ASKED, layer=2), atol=1e-3)
    pruned = prune_tokens(tokens, None, 0.5, strategy="fastv", scores=found)
    assert len(lvlm.answer(pruned, ASKED)) == 3


def test_padding_and_text_are_not_counted_as_image():
    lvlm = tiny_lvlm()
    tokens = lvlm.encode(tiny_images(2))
    short, long = "Hm?", "What is shown in the picture, and how many of them are there?"
    together = received_attention(lvlm.backbone, tokens, [short, long], 1)
    assert torch.allclose(together[:1], received_attention(lvlm.backbone, tokens[:1], [short], 1), atol=1e-5)


def test_mistakes():
    lvlm = tiny_lvlm()
    tokens = lvlm.encode(tiny_images(1))
    with pytest.raises(CraftError, match="has 2 layers; there is no layer 3"):
        received_attention(lvlm.backbone, tokens, ASKED[:1], layer=3)
    ragged = prune_tokens(tokens, torch.arange(32), 0.5, budget="approx")
    with pytest.raises(CraftError, match="These tokens are padded"):
        received_attention(lvlm.backbone, ragged, ASKED[:1])
