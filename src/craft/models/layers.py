"""How layers run in training steps: with gradient checkpointing (§8), or compiled by torch."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from craft.models.vision_tower import VisionTower

Recompute = bool | Literal["selective"]
"""What runs again: nothing, whole layers, or all of a layer except its matrix products and attention."""

_aten = torch.ops.aten
_STORED = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_fused_attention_overrideable.default,
}


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of all vision towers and LLMs in `model`, such as transformer layers or residual blocks."""
    towers = [module for module in model.modules() if isinstance(module, VisionTower)]
    own = {id(layer) for tower in towers for layer in tower.layers}
    return [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) or id(module) in own
    ]


@contextmanager
def recompute(model: nn.Module, what: Recompute = True) -> Iterator[None]:
    """Within the block, the layers of vision towers and LLMs in `model` are checkpointed (non-reentrant).

    This also works for frozen layers in evaluation mode, for which transformers' switch has no effect, and
    does not change generation outside the block. Values and gradients are those without it. "selective"
    stores the results of matrix products and attention and recomputes norms, activations and rotations: it
    saves a third of the memory without any additional product (torch's selective activation checkpointing).

    Source: §8, "gradient checkpointing".
    """
    layers = layers_of(model) if what else []
    options: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, **options)  # hides the method of the class
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _policy(context: object, operation: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _STORED else CheckpointPolicy.PREFER_RECOMPUTE


class Compiled:
    """A context in which layers run compiled by `torch.compile`; outside it they run as before.

    Validation between training steps has other shapes and caches, for which each layer would be compiled
    again. A layer is compiled at its first call.

    Source: ours.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._calls: dict[nn.Module, Callable[..., object]] = {}
        for layer in layers:
            layer.compile()
            self._calls[layer] = layer._compiled_call_impl  # type: ignore[assignment]
            layer._compiled_call_impl = None

    def __enter__(self) -> None:
        for layer, call in self._calls.items():
            layer._compiled_call_impl = call

    def __exit__(self, *_: object) -> None:
        for layer in self._calls:
            layer._compiled_call_impl = None
