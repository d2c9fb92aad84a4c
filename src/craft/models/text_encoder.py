"""The frozen text encoder of the contrastive loss: SigLIP's text tower and its tokenizer (§3.2, Eq. 4)."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import SiglipTextConfig, SiglipTextModel
from transformers.activations import ACT2FN

from craft.core.errors import CheckpointError
from craft.core.records import Layers, Record, Size, check_record

_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "projection_size",
    "hidden_act",
    "layer_norm_eps",
    "pad_token_id",
)


class TextConfig(Record):
    """The config of a `TextEncoder`."""

    vocab_size: int = Field(ge=1, le=2**24)
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    max_position_embeddings: Size
    projection_size: Size | None = None
    hidden_act: str | None = None
    layer_norm_eps: float | None = Field(default=None, gt=0, lt=1)
    pad_token_id: int | None = Field(default=None, ge=0, lt=2**24)


_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>")


class TextEncoder(nn.Module):
    """Texts -> embeddings `[n, d]`; frozen, always in evaluation mode, always float32.

    SigLIP pools the hidden state at the *last position*, attends to padding (no mask), and was trained with
    every text padded on the right to `max_position_embeddings`. Texts are therefore padded to exactly that
    length. A longer text keeps its first tokens, and the last one is the end token if the tokenizer adds one.

    Args:
        config: fields of transformers' `SiglipTextConfig`; `projection_size` is d (default: `hidden_size`).
            `pad_token_id` defaults to the tokenizer's padding or `<pad>`, and to SigLIP's 1 without either.
        tokenizer: a `tokenizers.Tokenizer`, or None for a checkpoint without one. Such a text encoder can be
            saved again but not used.

    Attributes:
        dim: d.
        config: the complete config as a JSON-able dict.

    Raises:
        CheckpointError: the config lacks a field or has one of another type, or the tokenizer has more tokens
            than the model.

    Source: §3.2 ("frozen text encoder"); SigLIP (arXiv 2303.15343).
    """

    stored_dtype: str  # set when it is read from disk

    def __init__(self, config: dict[str, Any], tokenizer: Tokenizer | None) -> None:
        super().__init__()
        check_record(TextConfig, config, "The text encoder's config", "copy it again")
        settings = {field: config[field] for field in _FIELDS if config.get(field) is not None}
        settings.setdefault("pad_token_id", _pad_id(tokenizer))
        siglip = SiglipTextConfig(**settings, bos_token_id=None, eos_token_id=None, attention_dropout=0.0)
        siglip._attn_implementation = "sdpa"
        if siglip.hidden_size % siglip.num_attention_heads or siglip.hidden_act not in ACT2FN:
            raise CheckpointError(
                f"The text encoder's config has width {siglip.hidden_size}, {siglip.num_attention_heads} "
                f"heads and activation {siglip.hidden_act!r}, which do not fit each other; copy it again."
            )
        self.config: dict[str, Any] = {field: getattr(siglip, field) for field in _FIELDS}
        self.dim = int(siglip.projection_size or siglip.hidden_size)
        self.length = int(siglip.max_position_embeddings)
        self.model = SiglipTextModel(siglip)
        self.tokenizer = None if tokenizer is None else self._prepare(tokenizer)
        self.requires_grad_(False)
        self.train(False)

    def _prepare(self, tokenizer: Tokenizer) -> Tokenizer:
        """A copy that pads and truncates to the length with which the model was trained."""
        prepared = Tokenizer.from_str(tokenizer.to_str())
        pad, vocabulary = self.config["pad_token_id"], self.config["vocab_size"]
        if prepared.get_vocab_size() > vocabulary or prepared.id_to_token(pad) is None:
            raise CheckpointError(
                f"The text encoder has {vocabulary} tokens and pads with id {pad}; its tokenizer has "
                f"{prepared.get_vocab_size()} tokens. They belong to different models."
            )
        prepared.enable_truncation(self.length)
        prepared.enable_padding(length=self.length, pad_id=pad, pad_token=prepared.id_to_token(pad))
        return prepared

    def train(self, mode: bool = True) -> "TextEncoder":
        """Stay in evaluation mode; `mode` has no effect."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.head.weight.device

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 `[n, max_position_embeddings]`, padded on the right, on the CPU.

        Raises:
            CheckpointError: this text encoder came without a tokenizer.
        """
        if self.tokenizer is None:
            raise CheckpointError(
                "The contrastive loss needs the text encoder's tokenizer, and this checkpoint has none. Put "
                "SigLIP's tokenizer.json into the folder that rqvaesiglip.pretrained_model in "
                "vision_tower/config.json names (google/siglip-large-patch16-256), or train with "
                "losses.contrastive.weight=0."
            )
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), self.length)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Ids int64 `[n, max_position_embeddings]` -> pooled output `[n, d]`, not normalised."""
        return self.model(input_ids=input_ids.to(self.device)).pooler_output

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Embed texts.

        Returns:
            float32 `[n, d]` on the encoder's device, not normalised (Eq. 4 takes cosines).

        Raises:
            CheckpointError: this text encoder came without a tokenizer.
        """
        if len(texts) == 0:
            return torch.zeros(0, self.dim, device=self.device)
        ids = self.tokenize(texts)
        with torch.autocast(self.device.type, enabled=False):
            return torch.cat([self(rows).float() for rows in ids.split(batch_size)])

    def weights(self) -> dict[str, Tensor]:
        """The weights by SigLIP's names (`embeddings.*`, `encoder.*`, `final_layer_norm.*`, `head.*`)."""
        return self.model.state_dict()


def _pad_id(tokenizer: Tokenizer | None) -> int:
    """The padding id that a tokenizer implies, or SigLIP's (1)."""
    if tokenizer is None:
        return 1
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    ids = [tokenizer.token_to_id(name) for name in _PAD_NAMES]
    return next((index for index in ids if index is not None), 1)
