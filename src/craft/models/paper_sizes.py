"""The models of §8 without weights, on the meta device: estimate what a run takes before any download."""

from typing import Any

import torch

from craft.core.errors import ConfigError
from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.models.projector import Projector
from craft.models.vision_tower import SiglipTower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import ResidualCodebook

_QWEN = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_SIZES = {
    "qwen2-0.5b": (896, 4864, 24, 14),
    "qwen2-1.5b": (1536, 8960, 28, 12),
    "qwen2.5-0.5b": (896, 4864, 24, 14),
    "qwen2.5-3b": (2048, 11008, 36, 16),
}
_SHARED = {"vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True}
LLMS: dict[str, tuple[str, dict[str, Any]]] = {
    f"paper/{name}": ("qwen2", _SHARED | dict(zip(_QWEN, sizes, strict=True)))
    for name, sizes in _SIZES.items()
} | {"paper/llama2-7b": ("llama", {"vocab_size": 32004})}  # transformers' defaults are Llama 2 7B's
"""Published sizes of the LLMs of §4.1, by name for `--dry-run`. Source: their config files on the hub."""

VISUAL = "paper/vila-u"
"""ViT-L/16 at 256 px, K = 16384, d = 1024, L = 4 (§4.1, §9, VILA-U)."""

DATA = {"1": 595_375, "2": 1_000_000 + 150_000}
"""Numbers of samples in §8: stage 1 CC3M-595K; stage 2 ShareGPT4V ("1M") and LLaVA-Instruct-150K."""


def paper_visual() -> VisualTokenizer:
    """VILA-U's visual tokenizer without values."""
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
        return VisualTokenizer(tower, ResidualCodebook(torch.zeros(4, 16384, 1024)))


def paper_lvlm(llm: str, dtype: torch.dtype = torch.bfloat16, visual: VisualTokenizer | None = None) -> LVLM:
    """An LLM of the paper on VILA-U's codebook, without values and without text tokenizer.

    Args:
        llm: a key of `LLMS`.
        dtype: of projector and LLM.
        visual: the visual tokenizer, on the meta device; None: `paper_visual()`.

    Raises:
        ConfigError: the LLM is not one of the paper.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if llm not in LLMS:
        raise ConfigError(f"The size {llm!r} is unknown; use one of {', '.join(LLMS)}.")
    visual = visual or paper_visual()
    kind, sizes = LLMS[llm]
    config = AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        widths = {"in": visual.codebook.dim, "out": config.hidden_size}
        projector = Projector({"type": "mlp2x_gelu", **widths}).to(dtype)
    return LVLM(visual, Backbone(projector, model, None, "chat-template", "0" * 64), llm)
