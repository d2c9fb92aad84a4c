"""Tiny models with random weights for tests: one visual tokenizer, backbones of two architectures."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.models.projector import Projector
from craft.models.vision_tower import SiglipTower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import ResidualCodebook

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE with <s>, </s>, <pad>, <unk>."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(["User: what is shown?\nAssistant: a red cat"] * 5, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    if template is not None:
        fast.chat_template = template
    return fast


def llm(kind: str, vocabulary: int) -> nn.Module:
    """A random two-layer Llama or Qwen2."""
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=kind == "qwen2",
    )
    return AutoModelForCausalLM.from_config(config)


def lvlm(kind: str = "llama", prompt: str = "plain", seed: int = 0, codebook_seed: int = 0) -> LVLM:
    """A complete random LVLM: 4 x 4 tokens, K = 32, d = 16, L = 3."""
    torch.manual_seed(seed)
    tower = SiglipTower(
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        }
    )
    with torch.no_grad():
        tower.embeddings.patch_embedding.weight.mul_(4)
    table = torch.randn(3, 32, 16, generator=torch.Generator().manual_seed(codebook_seed))
    visual = VisualTokenizer(tower, ResidualCodebook(table))
    words = tokenizer(TEMPLATE if prompt == "chat-template" else None)
    projector = Projector({"type": "mlp2x_gelu", "in": 16, "out": 32})
    backbone = Backbone(projector, llm(kind, len(words)), words, prompt, visual.codebook.fingerprint)
    return LVLM(visual, backbone, f"tiny/{kind}").eval()
