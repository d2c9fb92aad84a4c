"""LoRA that acts on prompts with an image only: without one, the LLM answers as it does without LoRA.

with acting_on(images):        # bool [B], for each row of the batch whether its prompt has an image
    llm(...)

Source: ours, after the modality LoRAs of Phi-4-multimodal (arXiv 2503.01743).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from craft.core.errors import CraftError

Scope = Literal["image", "all"]
"""The prompts on which the LoRA of a backbone acts: those with an image, or all."""

_IMAGES: ContextVar[Tensor | None] = ContextVar("images", default=None)  # each thread has its own


@contextmanager
def acting_on(images: Tensor | None) -> Iterator[None]:
    """Let `ImageLora` act on some rows only, within the block and this thread.

    Args:
        images: bool `[B]` on the CPU, whether the row's prompt has an image; None: all rows have one.
    """
    before = _IMAGES.set(None if images is None or bool(images.all()) else images)
    try:
        yield
    finally:
        _IMAGES.reset(before)


class ImageLora(nn.Linear):
    """W x + b, and in rows with an image W x + b + B A x. It replaces a linear map of an LLM.

    Outside `acting_on`, as in training on labelled images, all rows have an image.

    Attributes:
        A, B: the factors `[r, in]` and `[out, r]`, in the dtype of W. They do not train.

    Args:
        linear: the linear map, whose weights this one takes over.
        a, b: the factors.
    """

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.A = nn.Parameter(a.detach().to(linear.weight), requires_grad=False)
        self.B = nn.Parameter(b.detach().to(linear.weight), requires_grad=False)
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """`[B, T, in]` -> `[B, T, out]`.

        Raises:
            CraftError: only some rows have an image, and the LLM has joined the rows of the batch before this
                map, as a router of experts does.
        """
        images = _IMAGES.get()
        plain = super().forward(input)
        if images is not None and not bool(images.any()):
            return plain
        both = plain + F.linear(F.linear(input, self.A), self.B)
        if images is None:
            return both
        if input.ndim < 3 or len(input) != len(images):
            raise CraftError(
                "LoRA is on a linear map of this LLM that does not see the rows of a batch apart, so prompts "
                "with and without an image need separate batches."
            )
        acts = images.to(input.device, non_blocking=True).view(-1, *(1 for _ in input.shape[1:]))
        return torch.where(acts, both, plain)


def has_image_lora(llm: nn.Module) -> bool:
    """Whether an LLM has LoRA that acts on prompts with an image only."""
    return any(isinstance(module, ImageLora) for module in llm.modules())


def image_factors(llm: nn.Module) -> dict[str, Tensor]:
    """The factors `M.A` `[r, in]` and `M.B` `[out, r]` of an LLM's `ImageLora` M; empty without any."""
    return {
        f"{name}.{half}": getattr(module, half).detach()
        for name, module in llm.named_modules()
        if isinstance(module, ImageLora)
        for half in "AB"
    }
