"""Layers compiled by torch, for training steps only."""

from collections.abc import Callable, Iterable

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


class Compiled:
    """A context in which layers run compiled by `torch.compile`; outside it they run as before.

    Validation between training steps has other shapes and caches, for which each layer would be compiled
    again. A layer is compiled at its first call.

    Args:
        layers: the layers.

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


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of all vision towers and LLMs in `model`."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
