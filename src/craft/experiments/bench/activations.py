"""What a training step keeps for its backward pass at any size: one layer measured, the others alike.

Layers run on this machine for one image, in the dtype of the real run, with one and with two of them; the
difference is a layer's. The loss is measured on a few positions, by its allocations (its peak comes when all
layers' activations are there), and grows with their number.
"""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from craft.experiments.bench.flops import Step, layers_of, lengths
from craft.experiments.bench.measure import held_bytes, peak_bytes
from craft.experiments.bench.shapes import SHAPES, Shape, build_llm
from craft.losses import surrogate_alignment
from craft.models.backbone import Backbone
from craft.models.projector import Projector
from craft.models.recompute import Recompute, recompute
from craft.models.vision_tower import SiglipTower

CPU = torch.device("cpu")
_POSITIONS = 16
"""On which the loss is measured."""


@cache
def activation_bytes(size: str, step: Step, again: Recompute = False) -> dict[str, int]:
    """Bytes of one image's share, by part: tower, LLM, loss; `again` is what of the layers runs again.

    Only for steps through the vision tower, with or without all weights in the graph, as `Step.trains` says.
    """
    shape = SHAPES[size]
    kind = shape.large if step.large else shape.small
    before, behind, learned = lengths(shape)
    rows = before + shape.patches + step.questions * behind
    tower = _tower(size, again)
    llm = _llm(size, step.large, rows, step.trains == "all", again)
    positions = rows if step.all_logits else step.questions * learned
    return {
        "tower": tower * (shape.tower["num_hidden_layers"] - 1),
        "LLM": llm * layers_of(kind),
        "loss": _loss(size, step.large, step.all_logits) * positions // _POSITIONS,
    }


@cache
def _tower(size: str, again: Recompute) -> int:
    """Bytes of a layer of the vision tower, under autocast where the LLM is bfloat16."""
    shape, found = SHAPES[size], []
    for count in (1, 2):
        tower = SiglipTower(shape.with_layers(count).tower)
        pixels = torch.randn(1, 3, shape.tower["image_size"], shape.tower["image_size"])
        if shape.dtype == torch.bfloat16:
            tower, pixels = tower.to(torch.bfloat16), pixels.to(torch.bfloat16)
        with recompute(tower, again):
            found.append(held_bytes(partial(tower, pixels)))
    return found[1] - found[0]


@cache
def _llm(size: str, large: bool, length: int, trains: bool, again: Recompute) -> int:
    """Bytes of a layer of the LLM for one row."""
    found = []
    for count in (1, 2):
        shape = SHAPES[size].with_layers(count)
        kind, sizes = shape.large if large else shape.small
        llm = build_llm((kind, {**sizes, "vocab_size": 8}), CPU, shape.dtype)  # embeddings keep nothing
        llm.requires_grad_(trains)
        config = llm.config
        inputs = {
            "inputs_embeds": torch.randn(1, length, config.hidden_size).to(shape.dtype).requires_grad_(),
            "attention_mask": torch.ones(1, length, dtype=torch.bool),
            "position_ids": torch.arange(length)[None],
        }
        backbone = Backbone(Projector({"type": "mlp2x_gelu", "in": 1, "out": 1}), llm, None, "vila-u", "")
        with recompute(llm, again):
            found.append(held_bytes(partial(backbone.hidden_states, inputs)))
    return found[1] - found[0]


@cache
def _loss(size: str, large: bool, everywhere: bool) -> int:
    """Most bytes that head and loss take, forward and backward, for `_POSITIONS` positions."""
    shape: Shape = SHAPES[size]
    config = (shape.large if large else shape.small)[1]
    width, vocabulary = config.get("hidden_size", 4096), config["vocab_size"]
    head: Any = nn.utils.skip_init(nn.Linear, width, vocabulary, bias=False, dtype=shape.dtype)
    head.requires_grad_(False)
    head.weight.zero_()
    hidden = torch.randn(1, _POSITIONS + 1, width).to(shape.dtype).requires_grad_()
    labels = torch.randint(vocabulary, (1, _POSITIONS + 1))

    def all_logits() -> Tensor:
        from transformers.loss.loss_utils import ForCausalLMLoss

        return ForCausalLMLoss(head(hidden[:, 1:]), labels[:, 1:], vocabulary)

    def answers() -> Tensor:
        return surrogate_alignment(hidden, head, labels)

    return peak_bytes(lambda: torch.autograd.grad((all_logits if everywhere else answers)(), hidden), CPU)
