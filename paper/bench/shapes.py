"""Sizes of models for benchmarks, and models of those sizes with random weights."""

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from transformers import PreTrainedTokenizerBase

from craft.formats.llm_source import read_llm
from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.models.paper_sizes import LLMS
from craft.models.projector import Projector
from craft.models.vision_tower import SiglipTower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import ResidualCodebook


@dataclass(frozen=True)
class Shape:
    """One size of everything.

    Attributes:
        tower: config of `SiglipTower`.
        codes: K.
        levels: L.
        small, large: kind and config of the small surrogate's LLM, and of the LLM that the paper's baselines
            tune.
        text: the sizes of the frozen text tower that decide its cost: layers, width, MLP width, tokens.
        batch: images per step.
        words: number of words of the question, so that image and text have the paper's length.
        answer: number of words of the answer.
        dtype: of the LLMs' weights.
    """

    tower: dict[str, Any]
    codes: int
    levels: int
    small: tuple[str, dict[str, Any]]
    large: tuple[str, dict[str, Any]]
    text: tuple[int, int, int, int]
    batch: int
    words: int = 17
    answer: int = 7
    dtype: torch.dtype = torch.float32

    def with_layers(self, count: int) -> "Shape":
        """The same with `count` layers that run in the tower, and `count` layers in both LLMs."""
        return replace(
            self,
            tower={**self.tower, "num_hidden_layers": count + 1},
            small=(self.small[0], {**self.small[1], "num_hidden_layers": count}),
            large=(self.large[0], {**self.large[1], "num_hidden_layers": count}),
        )

    @property
    def width(self) -> int:
        """d, the tower's width and the codebook's."""
        return int(self.tower["hidden_size"])

    @property
    def patches(self) -> int:
        """N."""
        return (self.tower["image_size"] // self.tower["patch_size"]) ** 2


def _tower(width: int, layers: int, heads: int, size: int = 256) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size")
    return dict(zip(names, (width, 4 * width, layers, heads, size), strict=True)) | {"patch_size": 16}


def _llm(
    vocabulary: int, width: int, inner: int, layers: int, heads: int, kv: int, tied: bool
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "tie_word_embeddings": tied,
    }


SHAPES = {
    "real": Shape(
        tower=_tower(1024, 24, 16),
        codes=16384,
        levels=4,
        small=LLMS["paper/qwen2-0.5b"],
        large=LLMS["paper/llama2-7b"],
        text=(24, 1024, 4096, 64),
        batch=24,
        dtype=torch.bfloat16,
    ),
    "reduced": Shape(  # depth and widths a quarter of the real ones: 1/64 of the weights
        tower=_tower(256, 7, 4),
        codes=1024,
        levels=4,
        small=("qwen2", _llm(37984, 224, 1216, 6, 7, 1, True)),
        large=("llama", _llm(8001, 1024, 2752, 8, 8, 8, False)),
        text=(6, 256, 1024, 64),
        batch=2,
    ),
    "tiny": Shape(
        tower=_tower(32, 3, 2, 64),
        codes=64,
        levels=4,
        small=("qwen2", _llm(600, 16, 64, 2, 2, 1, True)),
        large=("llama", _llm(200, 64, 172, 4, 4, 4, False)),
        text=(2, 32, 128, 16),
        batch=2,
    ),
}
"""By the values of `python -m paper bench --size`."""


class Words(PreTrainedTokenizerBase):
    """A text tokenizer with one token per word and mark: the cost does not depend on ids."""

    bos_token_id, eos_token_id, unk_token_id, eos_token = 1, 2, 0, " </s>"

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        words = re.findall(r"</s>|\w+|[^\w\s]", text)
        ids = [2 if word == "</s>" else 3 + crc32(word.encode()) % (self.vocabulary - 3) for word in words]
        return {"input_ids": [self.bos_token_id, *ids] if add_special_tokens else ids}

    def get_added_vocab(self) -> dict[str, int]:
        """Nothing: there are no marks around the image."""
        return {}

    def convert_tokens_to_ids(self, token: str) -> int:
        """The unknown token, for every token: this is not SentencePiece."""
        return self.unk_token_id


def build_llm(
    kind: tuple[str, dict[str, Any]], device: torch.device, dtype: torch.dtype, attention: str = "sdpa"
) -> Any:
    """A causal LM with random weights; on the meta device without values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind[0], **kind[1])
    with device:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        ).eval()


def build_lvlm(shape: Shape, large: bool, device: torch.device, llm_bits: int | None = None) -> LVLM:
    """An LVLM with random weights in VILA-U's prompt format (some words before the image).

    Args:
        shape: its sizes.
        large: with the large LLM.
        device: of all weights.
        llm_bits: as for `craft.load`. The LLM is written to a folder and read again, since weights are packed
            as they are read.
    """
    kind = shape.large if large else shape.small
    with device:
        torch.manual_seed(0)
        tower = SiglipTower(shape.tower)
        codebook = ResidualCodebook(torch.randn(shape.levels, shape.codes, shape.width))
        llm = build_llm(kind, device, shape.dtype)
        sizes = {"type": "mlp2x_gelu", "in": shape.width, "out": llm.config.hidden_size}
        projector = Projector(sizes).to(shape.dtype)
    if llm_bits is not None:
        with tempfile.TemporaryDirectory() as folder:
            llm.save_pretrained(folder)
            llm = read_llm(Path(folder), shape.dtype, llm_bits, device)
    tokenizer = Words(kind[1]["vocab_size"])
    backbone = Backbone(projector, llm, tokenizer, "vila-u", codebook.fingerprint)
    return LVLM(VisualTokenizer(tower, codebook), backbone, "large" if large else "small").to(device).eval()
