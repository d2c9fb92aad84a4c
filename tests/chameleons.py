"""Tiny random Chameleon checkpoints as transformers writes them; two LLMs share one VQ model."""

from pathlib import Path

import torch
from tokenizers import AddedToken, processors
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from builders import tiny_tokenizer

CODES, SIDE = 64, 32
VQ = {
    "resolution": SIDE, "base_channels": 32, "channel_multiplier": [1, 1, 2], "num_res_blocks": 1,
    "latent_channels": 16, "embed_dim": 8, "num_embeddings": CODES, "dropout": 0.3,
}  # fmt: skip
SIZES = {
    "small": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 4},
    "large": {
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_key_value_heads": 2,
        "swin_norm": True, "model_parallel_size": 2,
    },
}  # fmt: skip
"""The larger one has what distinguishes Chameleon 30B: grouped keys, and norms after attention and MLP."""


def chameleon_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the tests with Chameleon's special tokens and its image tokens, in another order than
    that of the codes."""
    tokenizer = tiny_tokenizer()
    order = torch.randperm(CODES, generator=torch.Generator().manual_seed(0)).tolist()
    names = [f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(code))}Z" for code in order]
    special = ["<racm3:break>", "<eoss>", "<reserved08706>", "<image>"]
    tokenizer.add_tokens([AddedToken(name, special=True) for name in [*special[:2], *names, *special[2:]]])
    tokenizer.sep_token = "<reserved08706>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def save_chameleon(
    folder: Path, size: str = "small", vq_seed: int = 0, **settings: object
) -> tuple[ChameleonForConditionalGeneration, ChameleonProcessor]:
    """Save a checkpoint and return transformers' own model and processor.

    Args:
        size: a key of `SIZES`.
        vq_seed: of the VQ model's weights; the same seed gives the same VQ model for all sizes.
        settings: of `save_pretrained`.
    """
    tokenizer = chameleon_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(size))
        config = ChameleonConfig(
            vocab_size=len(tokenizer) + 5, num_attention_heads=4, max_position_embeddings=256,
            initializer_range=0.3, pad_token_id=0, vq_config=VQ, vocabulary_map=tokenizer.get_vocab(),
            **SIZES[size],
        )  # fmt: skip
        model = ChameleonForConditionalGeneration(config).eval()
        torch.manual_seed(100 + vq_seed)
        with torch.no_grad():
            for parameter in model.model.vqmodel.parameters():  # drawn here, so that seeds decide alone
                fan = parameter[0].numel() if parameter.ndim > 1 else 0
                parameter.copy_(torch.randn_like(parameter) * (fan**-0.5 if fan else 0.1))
                if parameter.ndim == 1:
                    parameter.add_(1)
            noise = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
            features = model.model.vqmodel.quant_conv(model.model.vqmodel.encoder(noise))
            model.model.vqmodel.quantize.embedding.weight.copy_(features[0].flatten(1).T)  # so all are used
            ids = model.model.vocabulary_mapping.img2bpe_mapping_tensor.long()
            codewords = (features[0] - features[0].mean((1, 2), keepdim=True)).flatten(1).T
            rows = codewords @ torch.randn(codewords.shape[1], config.hidden_size)
            rows = rows / rows.std() + 0.1 * torch.randn_like(rows)  # as if the LLM had learned the codes
            model.model.embed_tokens.weight[ids] = 0.3 * rows
    processor = ChameleonProcessor(
        ChameleonImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        image_seq_length=(SIDE // 4) ** 2,
    )
    model.save_pretrained(folder, **settings)
    processor.save_pretrained(folder)
    return model, processor
