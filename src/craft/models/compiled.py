"""Layers compiled by torch, for training steps only."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


class Compiled:
    """Within its block layers run as `torch.compile` has them; outside they are what they were.

    Answers between steps (validation) would have each layer compiled anew, for shapes and caches of their
    own. Compiling happens when a layer is first called.

    Args:
        layers: the layers.

    Source: ours.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._calls: dict[nn.Module, Callable[..., Any]] = {}
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


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of the towers and LLMs in `model`."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
