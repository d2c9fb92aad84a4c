"""VILA-U-7B-256 on the meta device: every shape, the parameter counts and the memory estimate."""

import pytest
import torch

from craft.models.backbone import Backbone
from craft.models.freezing import freeze_all_but, parameter_table
from craft.models.lvlm import LVLM
from craft.models.memory import estimate_memory, kept_per_token, weight_bytes
from craft.models.projector import Projector
from craft.models.vision_tower import SiglipTower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import ResidualCodebook

GIB = 2**30


@pytest.fixture(scope="module")
def lvlm() -> LVLM:
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        tower = SiglipTower(
            {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 256,
                "patch_size": 16,
            }
        )
        codebook = ResidualCodebook(torch.zeros(4, 16384, 1024))
        projector = Projector({"type": "mlp2x_gelu", "in": 1024, "out": 4096}).to(torch.bfloat16)
        llm = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=32004), dtype=torch.bfloat16)
        visual = VisualTokenizer(tower, codebook)
    lvlm = LVLM(visual, Backbone(projector, llm, None, "vila-u", "0" * 64), "vila-u-7b-256")
    freeze_all_but(lvlm, ["vision_tower", "log_temperature"])
    return lvlm


def test_parameter_counts(lvlm: LVLM) -> None:
    rows = {name: (total, trained) for name, total, trained in parameter_table(lvlm)}
    assert len(lvlm.visual.vision_tower.layers) == 23  # the last of 24 never runs
    layer = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
    patches = 3 * 16 * 16 * 1024 + 1024 + 256 * 1024
    tower = 23 * layer + patches + 1024  # and [CLS]
    assert rows["vision_tower"] == (tower, tower)
    assert rows["codebook"] == (4 * 16384 * 1024, 0)
    assert rows["projector"] == (1024 * 4096 + 4096 + 4096 * 4096 + 4096, 0)
    assert rows["llm"] == (6_738_415_616 + 2 * 4 * 4096, 0)  # Llama-2-7B with four more tokens


def test_every_shape_of_a_step(lvlm: LVLM) -> None:
    with torch.device("meta"):
        tokens = lvlm.visual(torch.empty(2, 3, 256, 256), partial_sums=True)
        assert tokens.features.shape == tokens.quantized.shape == (2, 256, 1024)
        assert tokens.codes.shape == (2, 256, 4) and tokens.codes.dtype == torch.int64
        assert tokens.residual.shape == tokens.positions.shape == (2, 256)
        assert tokens.partial_sums is not None and tokens.partial_sums.shape == (2, 256, 4, 1024)
        assert tokens.cls is not None and tokens.cls.shape == (2, 1024)
        assert tokens.grid == (16, 16)
        projected = lvlm.backbone.read(tokens)
        assert projected.shape == (2, 256, 4096) and projected.dtype == torch.bfloat16
        text = torch.empty(88, dtype=torch.long)
        spliced = lvlm.backbone.splice([[text, projected[0], text], [text, projected[1]]])
        assert spliced["inputs_embeds"].shape == (2, 432, 4096)
        assert spliced["attention_mask"].shape == spliced["position_ids"].shape == (2, 432)
        spliced["attention_mask"] = torch.empty(2, 1, 432, 432, dtype=torch.bool)  # no values to inspect here
        hidden = lvlm.backbone.hidden_states(spliced)
        assert hidden.shape == (2, 432, 4096)
        logits = lvlm.backbone.lm_head(hidden[:, -3:])
        assert logits.shape == (2, 3, 32004)
        logits.float().sum().backward()
    gradient = lvlm.visual.vision_tower.embeddings.patch_embedding.weight.grad
    assert gradient is not None and gradient.shape == (1024, 3, 16, 16)
    assert all(parameter.grad is None for parameter in lvlm.backbone.parameters())


def test_memory_estimate(lvlm: LVLM) -> None:
    estimate = estimate_memory(lvlm, batch_size=24, seq_len=400, dtype=torch.bfloat16)
    tower = sum(parameter.numel() for parameter in lvlm.visual.vision_tower.parameters())
    assert estimate["gradients"] == 4 * (tower + 1)
    assert estimate["optimiser"] == 8 * (tower + 1)
    assert 13.5 * GIB < estimate["weights"] < 15 * GIB
    checkpointed = estimate_memory(lvlm, 24, 400, torch.bfloat16, gradient_checkpointing=True)
    assert checkpointed["activations"] < estimate["activations"] / 3
    assert checkpointed["total"] < 40 * GIB < estimate["total"] < 80 * GIB
    assert estimate_memory(lvlm, 1, 400, torch.bfloat16)["activations"] * 24 == estimate["activations"]
    mixed = estimate_memory(lvlm, 24, 400, torch.bfloat16, mixed=0.5)  # the base tower, and 12 pictures more
    assert mixed["weights"] - estimate["weights"] == weight_bytes(lvlm.visual.vision_tower)
    alone = estimate_memory(lvlm, 12, 400, torch.bfloat16)["activations"]
    text = 12 * 400 * 2 * kept_per_token(lvlm.backbone.llm.config, lvlm.backbone.llm.config.num_hidden_layers)
    assert mixed["activations"] - estimate["activations"] == alone - text
    assert estimate["search"] <= 24 * 256 * 16384 * 4 / 8  # never an [N, K] matrix


def test_llms_that_call_their_mlp_width_otherwise() -> None:
    from transformers import GPT2Config, GPTNeoConfig

    assert kept_per_token(GPT2Config(n_embd=64), 2) == 2 * (8 * 64 + 3 * 256)
    assert kept_per_token(GPTNeoConfig(hidden_size=64), 2) == 2 * (8 * 64 + 3 * 256)
