"""Gradient checkpointing (§8): layers keep their inputs only, and run again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def recompute(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Within the block the layers of towers and LLMs in `model` are checkpointed (non-reentrant).

    Works for frozen layers in evaluation mode, where transformers' own switch does nothing, and leaves
    generation outside the block as it is. Values and gradients are those without it.

    Source: §8, "gradient checkpointing".
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if on else []
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # hides the class's own
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
