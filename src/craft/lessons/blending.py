"""How much of what was trained is kept: a share of the new weights, the rest those of before (WiSE-FT)."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from craft.core.progress import say
from craft.data import Sample
from craft.training.lesson import nothing

FEW = 30
"""Fewer classes than these teach a tower to tell those apart, and it forgets what would tell others; many
teach it the domain. Source: ours; the border was found on development images (`docs/concepts.md`)."""

OF_FEW, OF_MANY = 0.3, 1.0
"""The shares of what was trained that are kept, without the retention loss."""


def class_count(samples: Sequence[Sample]) -> int:
    """How many classes there are in training; of answers, where samples have no labels."""
    return len({sample.concept for sample in samples})


def kept_share(blend: float | None, samples: Sequence[Sample], retention_weight: float = 0.0) -> float:
    """The share of what is trained that is kept, in (0, 1]; says so where the number of classes settles it.

    Args:
        blend: as set; None leaves it to the number of classes.
        samples: the training set.
        retention_weight: of the retention loss. With it, all is kept.

    Source: ours; both shares were chosen on development images (`docs/concepts.md`).
    """
    if blend is not None:
        return blend
    if retention_weight:
        return 1.0
    classes = class_count(samples)
    share = OF_FEW if classes < FEW else OF_MANY
    say(f"blend: {share:g} of what is trained will be kept, for {classes} classes (1 from {FEW} on)")
    return share


def blending(trained: dict[str, nn.Parameter], share: float) -> Callable[[], None]:
    """What makes the trained weights those to keep, in place; the weights as they are now are the base's."""
    if share == 1:
        return nothing
    base = {name: parameter.detach().clone() for name, parameter in trained.items()}
    return partial(_blend, trained, base, share)


@torch.no_grad()
def _blend(trained: dict[str, nn.Parameter], base: dict[str, Tensor], share: float) -> None:
    """`share` of the trained weights with `1 - share` of the base's (WiSE-FT, arXiv 2109.01903); of LoRA that
    share of the update: W + B A becomes W + share · B A."""
    for name, parameter in trained.items():
        if "lora_B" in name:
            parameter.mul_(share)
        elif "lora_A" not in name:
            parameter.copy_(torch.lerp(base[name], parameter, share))
