"""Tiny models with random, seeded weights for the whole test suite; each builds in a fraction of a second."""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.models.projector import Projector
from craft.models.text_encoder import TextEncoder
from craft.models.towers import build_tower
from craft.models.vision_tower import HybridTower, SiglipTower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import ResidualCodebook

HYBRID = {
    "type": "hybrid",
    "image_size": 32,
    "stem_blocks": 5,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "dim": 16,
}
SIGLIP = {
    "type": "siglip",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
TEXT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "projection_size": 16,
}
CORPUS = [
    "What is shown in the picture?",
    "A. a red shirt\nB. a blue bag\nC. a pair of boots\nD. a warm coat",
    "Answer in one letter only.",
    "Answer with the option only.",
    "User: Which of these is it?\nAssistant: dress",
    "the handwritten digit seven",
    "sandal, sneaker, pullover, trousers, dress, coat, shirt, bag, boot, T-shirt",
    "zero one two three four five six seven eight nine",
    "A small round thing on a dark background.",
    "How many of them are there?",
    "It is made of cloth and worn on the body.",
    "Name the animal: cat, dog, horse, bird, fish.",
    "Explain in a few words.",
    "bag: strap, leather, carry",
    "A photo of a striped jumper.",
    "The answer is B.",
    "green, yellow, orange, purple, black, white, grey",
    "left, right, above, below, inside",
    "one square and two circles",
    "I do not know.",
]
SPECIAL = ["<pad>", "<s>", "</s>"]  # ids 0, 1, 2
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@cache
def _bpe(vocab_size: int) -> str:
    """A byte-level BPE as JSON text, trained on the corpus above."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(vocab_size: int = 300, template: str | None = None) -> PreTrainedTokenizerFast:
    """A transformers tokenizer: byte-level BPE, `<pad>`, `<s>`, `</s>`; it can write any text."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe(vocab_size)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_text_encoder(seed: int = 0) -> TextEncoder:
    """A one-layer text encoder of width 16 with an end token on every text."""
    tokenizer = Tokenizer.from_str(_bpe(300))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TextEncoder(TEXT, tokenizer)


def tiny_codebook(seed: int = 0, levels: int = 2, size: int = 32, dim: int = 16) -> ResidualCodebook:
    """Random codewords, smaller at each level."""
    generator = torch.Generator().manual_seed(1000 + seed)
    scales = 0.5 ** torch.arange(levels).view(-1, 1, 1)
    return ResidualCodebook(torch.randn(levels, size, dim, generator=generator) * 0.6 * scales)


def tiny_tower(kind: str = "hybrid", seed: int = 0) -> HybridTower | SiglipTower:
    """A vision tower of 32 px and 16 patches, with a [CLS] token that is not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = build_tower(HYBRID if kind == "hybrid" else SIGLIP)
        with torch.no_grad():
            tower.cls_token.normal_(std=0.5)
            if isinstance(tower, HybridTower):
                tower.position_embedding.normal_(std=0.1)
            for (
                module
            ) in tower.modules():  # the default starts are too small: every image would give one code
                if isinstance(module, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return tower.eval()


def tiny_visual(tower: str = "hybrid", seed: int = 0, codebook_seed: int = 0) -> VisualTokenizer:
    """Tower, codebook (2 levels of 32 codewords, d = 16) and text encoder."""
    return VisualTokenizer(
        tiny_tower(tower, seed), tiny_codebook(codebook_seed), tiny_text_encoder(seed), log_temperature=2.0
    ).eval()


def tiny_llm(kind: str = "llama", seed: int = 0) -> LlamaForCausalLM | Qwen2ForCausalLM:
    """Two layers, 32 wide; "llama" with its own output embedding, "qwen2" with a tied one."""
    common = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "llama":
            config = LlamaConfig(vocab_size=300, tie_word_embeddings=False, **common)
            return LlamaForCausalLM(config).eval()
        return Qwen2ForCausalLM(Qwen2Config(vocab_size=330, tie_word_embeddings=True, **common)).eval()


def alibi_llm(kind: str) -> PreTrainedModel:
    """ "bloom", "mpt" or "falcon": two layers, 32 wide, positions by ALiBi."""
    common = {
        "vocab_size": 300,
        "hidden_size": 32,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "bloom":
            return BloomForCausalLM(BloomConfig(n_layer=2, n_head=4, **common)).eval()
        if kind == "mpt":
            common["d_model"] = common.pop("hidden_size")
            return MptForCausalLM(MptConfig(n_layers=2, n_heads=4, max_seq_len=256, **common)).eval()
        shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "multi_query": False}
        return FalconForCausalLM(FalconConfig(alibi=True, **shape, **common)).eval()


def tiny_backbone(
    kind: str = "llama", seed: int = 0, codebook: ResidualCodebook | None = None, prompt: str = "plain"
) -> Backbone:
    """Projector, LLM and tokenizer for `codebook` (the tiny one when None)."""
    codebook = tiny_codebook() if codebook is None else codebook
    llm = tiny_llm(kind, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        projector = Projector({"type": "mlp2x_gelu", "in": codebook.dim, "out": 32})
    tokenizer = tiny_tokenizer(llm.config.vocab_size, TEMPLATE if prompt == "chat-template" else None)
    return Backbone(projector, llm, tokenizer, prompt, codebook.fingerprint).eval()


def tiny_lvlm(
    kind: str = "llama", seed: int = 0, codebook_seed: int = 0, tower: str = "hybrid", prompt: str = "plain"
) -> LVLM:
    """A whole LVLM in float32 on the CPU; equal arguments give equal weights.

    Args:
        kind: "llama" or "qwen2"; they share tower and codebook for equal seeds, and nothing else.
        seed: of every weight but the codebook.
        codebook_seed: of the codebook.
        tower: "hybrid" or "siglip".
        prompt: the prompt format, "plain" or "chat-template".
    """
    visual = tiny_visual(tower, seed, codebook_seed)
    return LVLM(visual, tiny_backbone(kind, seed, visual.codebook, prompt), f"tiny/{kind}").eval()


def tiny_continuous(kind: str = "llama", seed: int = 0, tower: str = "hybrid") -> LVLM:
    """The continuous twin of `tiny_lvlm`: the same weights, features read as they are."""
    visual = tiny_visual(tower, seed).unquantised()
    backbone = tiny_backbone(kind, seed)
    backbone.codebook_fingerprint = visual.codebook.fingerprint
    return LVLM(visual, backbone, f"tiny/continuous-{kind}").eval()


def tiny_images(count: int = 3, seed: int = 0, size: int = 32) -> torch.Tensor:
    """Pixels float32 `[count, 3, size, size]` in [-1, 1]: smooth blobs, all different."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").clamp(-1, 1)
