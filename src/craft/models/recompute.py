"""Gradient checkpointing (§8): layers keep little, and run again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from craft.models.compiled import layers_of

Recompute = bool | Literal["selective"]
"""What runs again: nothing, whole layers, or all of a layer but its matrix products and attention."""

_aten = torch.ops.aten
_KEPT = {
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


@contextmanager
def recompute(model: nn.Module, what: Recompute = True) -> Iterator[None]:
    """Within the block the layers of towers and LLMs in `model` are checkpointed (non-reentrant).

    Works for frozen layers in evaluation mode, where transformers' own switch does nothing, and leaves
    generation outside the block as it is. Values and gradients are those without it. "selective" keeps the
    results of matrix products and attention, and makes norms, activations and rotations again: a third less
    memory for no product more (torch's selective activation checkpointing).

    Source: §8, "gradient checkpointing".
    """
    layers = layers_of(model) if what else []
    how: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        how["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, **how)  # hides the class's own
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
