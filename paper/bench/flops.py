"""FLOPs of a training step by part, counted on the meta device at any size: 2 per multiply-add."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from craft.models.backbone import Backbone
from craft.models.paper_sizes import LLMS
from craft.models.projector import Projector
from craft.models.prompts import build_prompt
from craft.models.vision_tower import SiglipTower
from craft.training.config import LoraConfig
from craft.training.lora import add_lora
from paper.bench.measure import counted
from paper.bench.shapes import SHAPES, Shape, Words, build_llm

META = torch.device("meta")
LORA = LoraConfig(rank=64)
"""The paper does not state its rank; LLaVA's is of this size."""


@dataclass(frozen=True)
class Step:
    """What a training step does.

    Attributes:
        large: with the large LLM.
        trains: "vision", "projector", "lora", or "all": every weight gets a gradient, even if it is not used.
        all_logits: logits at all positions, as with `labels=` of transformers, not only at the answer's.
        text_tower: the text tower runs in each step, not once for each text.
        questions: number of questions about each image, in one row.
        crafted: with the paper's three losses; else with the loss of the answers alone.
    """

    large: bool = False
    trains: str = "vision"
    all_logits: bool = False
    text_tower: bool = False
    questions: int = 1
    crafted: bool = True


def lengths(shape: Shape) -> tuple[int, int, int]:
    """Tokens before the image, after it, and how many of the latter are learned (the same for both LLMs)."""
    prompt = build_prompt("vila-u", Words(1000), question(shape), answer(shape))
    return len(prompt.before), len(prompt.after) + len(prompt.answer), len(prompt.answer)


def question(shape: Shape) -> str:
    """A question of the shape's length."""
    return " ".join(f"word{number}" for number in range(shape.words))


def answer(shape: Shape) -> str:
    """An answer of the shape's length."""
    return " ".join(f"answer{number}" for number in range(shape.answer))


@cache
def flops_per_image(size: str, step: Step, llm: str | None = None) -> dict[str, int]:
    """FLOPs of a step for one image, by part: tower, search, projector, LLM, head, text tower.

    Layers are alike: one and two of them are counted, and the difference is the cost of each further one.

    Args:
        size: a key of `SHAPES`.
        step: of what kind.
        llm: a key of `craft.models.paper_sizes.LLMS` instead of the LLMs of the size.
    """
    shape = SHAPES[size]
    if llm is not None:
        shape = replace(shape, small=LLMS[llm], large=LLMS[llm])
    one, two = (_parts(shape.with_layers(count), step) for count in (1, 2))
    kind = shape.large if step.large else shape.small
    more = {"tower": shape.tower["num_hidden_layers"] - 2, "LLM": layers_of(kind) - 1}
    parts = {name: one[name] + more.get(name, 0) * (two[name] - one[name]) for name in one}
    if step.text_tower:
        layers, width, inner, tokens = shape.text
        linear, attention = 2 * (4 * width * width + 2 * width * inner), 4 * tokens * width
        parts["text tower"] = layers * tokens * (linear + attention)
    return parts


def layers_of(kind: tuple[str, dict[str, Any]]) -> int:
    """Layers of an LLM."""
    from transformers import AutoConfig

    return int(AutoConfig.for_model(kind[0], **kind[1]).num_hidden_layers)


def _parts(shape: Shape, step: Step) -> dict[str, int]:
    before, after, learned = lengths(shape)
    rows = before + shape.patches + step.questions * after
    kind = shape.large if step.large else shape.small
    width = kind[1].get("hidden_size", 4096)
    positions = rows if step.all_logits else step.questions * learned
    return {
        "tower": _tower(shape, step.trains in ("vision", "all"), step.crafted),
        "search": 2 * shape.patches * shape.width * shape.codes * shape.levels,
        "projector": _projector(shape, width, step.trains),
        "LLM": _llm(kind, rows, step.trains),
        "head": _head(kind[1]["vocab_size"], width, positions, step.trains == "all"),
    }


def _tower(shape: Shape, trains: bool, with_cls: bool) -> int:
    with META:
        tower = SiglipTower(shape.tower)
        pixels = torch.empty(1, 3, shape.tower["image_size"], shape.tower["image_size"])
    tower.requires_grad_(False)
    tower.layers.requires_grad_(trains)

    def run() -> None:
        features, _ = tower(pixels, with_cls)
        if trains:
            features.sum().backward()

    return counted(run)


def _projector(shape: Shape, width: int, trains: str) -> int:
    with META:
        projector = Projector({"type": "mlp2x_gelu", "in": shape.width, "out": width})
        quantized = torch.empty(1, shape.patches, shape.width, requires_grad=trains in ("vision", "all"))
    projector.requires_grad_(trains in ("projector", "all"))

    def run() -> None:
        out = projector(quantized)
        if out.requires_grad:
            out.sum().backward()

    return counted(run)


def _llm(kind: tuple[str, dict[str, Any]], length: int, trains: str) -> int:
    llm = build_llm(kind, META, torch.float32, "eager").requires_grad_(trains == "all")
    if trains == "lora":
        with META:
            add_lora(llm, LORA)
        for name, parameter in llm.named_parameters():
            parameter.requires_grad_("lora_" in name)
    config = llm.config
    backbone = Backbone(Projector({"type": "mlp2x_gelu", "in": 1, "out": 1}), llm, None, "vila-u", "")
    inputs = {
        "inputs_embeds": torch.empty(
            1, length, config.hidden_size, device=META, requires_grad=trains != "lora"
        ),
        "attention_mask": torch.empty(1, 1, length, length, device=META),
        "position_ids": torch.empty(1, length, dtype=torch.long, device=META),
    }
    return counted(lambda: backbone.hidden_states(inputs).sum().backward())


def _head(vocabulary: int, width: int, rows: int, trains: bool) -> int:
    head = nn.Linear(width, vocabulary, bias=False, device=META).requires_grad_(trains)
    hidden: Tensor = torch.empty(rows, width, device=META, requires_grad=True)
    return counted(lambda: head(hidden).sum().backward())
