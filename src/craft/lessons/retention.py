"""What keeps the classes that training never sees. Source: ours.

Trained on few classes, a tower pulls every picture to one of them. Two remedies:

- the retention loss: some pictures of the domain are made to show none of the classes (two of different
  classes, one laid over the other), and on those the tower keeps the base tower's features;
- blending: only a share of what was trained is kept, the rest is the base tower (WiSE-FT).
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.progress import say
from craft.core.seeding import rng
from craft.data import Sample
from craft.training.lesson import nothing

FEW = 30
"""With fewer classes than this a tower learns to tell those apart and forgets what would tell others; with
more it learns the domain. The border was found on development images (`docs/results/development.md`)."""

RETENTION_OF_FEW = 3.0
"""The weight of the retention loss with few classes."""

BLEND_OF_FEW, BLEND_OF_MANY = 0.3, 1.0
"""The shares of what was trained that are kept without the retention loss."""

MIXED = 1 / 3
"""Mixed pictures per training image: each costs the tower a pass more."""

_SHARES = 0.35, 0.65  # of the first picture


def class_count(samples: Sequence[Sample]) -> int:
    """The number of classes in training; of answers, if samples have no labels."""
    return len({sample.concept for sample in samples})


# The retention loss


def retention_weight(weight: float | None, samples: Sequence[Sample]) -> float:
    """The weight of the retention loss. Says so if the number of classes decides it and it is not 0.

    Args:
        weight: as set; None is `RETENTION_OF_FEW` with fewer than `FEW` classes, else 0.
        samples: the training set.

    The default was chosen on development images (`docs/results/development.md`).
    """
    if weight is not None:
        return weight
    classes = class_count(samples)
    if classes >= FEW:
        return 0.0
    say(f"retention: weight {RETENTION_OF_FEW:g}, for {classes} classes (0 from {FEW} on)")
    return RETENTION_OF_FEW


def base_features(tower: nn.Module, from_stem: bool) -> Callable[[Tensor], Tensor]:
    """A function that returns the features `[B, N, d]` of a copy of `tower` as it is now, without gradient.

    Args:
        tower: the vision tower before training.
        from_stem: the function takes the frozen stem's maps instead of pixels.

    It is a function and no module, so that the copy is neither sharded nor sent around: processes without
    mixed pictures do not run it.
    """
    base: Any = copy.deepcopy(tower).requires_grad_(False).eval()
    run = base.after_stem if from_stem else base

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return run(images, with_cls=False)[0]

    return features


def partners(samples: Sequence[Sample], seed: int) -> dict[int, int]:
    """The images that get mixed, each with a random one of another class: from index to index.

    They are the same in every epoch, so that both images can be decoded ahead.

    Args:
        samples: one for each image.
        seed: the run's.
    """
    pairs = {}
    for index, sample in enumerate(samples):
        draw = rng(seed, "partner", sample.id)
        if draw.random() < MIXED:
            tries = (draw.randrange(len(samples)) for _ in range(100))
            other = next((one for one in tries if samples[one].concept != sample.concept), None)
            if other is not None:
                pairs[index] = other
    return pairs


def mix(images: Tensor, others: Tensor, ids: Sequence[str], seed: int, step: int) -> Tensor:
    """Each image laid over another, about half of each: a pure function of seed, step and sample id.

    Args:
        images, others: `[B, C, h, w]`, pixels or the frozen stem's maps.
        ids: of the B samples whose images come first.
        seed: the run's.
        step: the optimiser step.

    Source: mixup (arXiv 1710.09412); its pictures serve another purpose here.
    """
    shares = [rng(seed, "mix", step, name).uniform(*_SHARES) for name in ids]
    return torch.lerp(others, images, images.new_tensor(shares)[:, None, None, None])


# Blending


def kept_share(blend: float | None, samples: Sequence[Sample], retention: float = 0.0) -> float:
    """The share of what is trained that is kept, in (0, 1]. Says so if the number of classes decides it.

    Args:
        blend: as set; None leaves it to the number of classes.
        samples: the training set.
        retention: the weight of the retention loss. With it, everything is kept.

    Both shares were chosen on development images (`docs/results/development.md`).
    """
    if blend is not None:
        return blend
    if retention:
        return 1.0
    classes = class_count(samples)
    share = BLEND_OF_FEW if classes < FEW else BLEND_OF_MANY
    say(f"blend: {share:g} of what is trained will be kept, for {classes} classes (1 from {FEW} on)")
    return share


def blended(trained: dict[str, nn.Parameter], share: float | None) -> Callable[[], None]:
    """A function that turns the trained weights, in place, into those to keep.

    Args:
        trained: the parameters, which still have the base tower's values.
        share: of the trained weights; 1 or None keeps them as they are.
    """
    if share is None or share == 1:
        return nothing
    base = {name: parameter.detach().clone() for name, parameter in trained.items()}
    return partial(_blend, trained, base, share)


@torch.no_grad()
def _blend(trained: dict[str, nn.Parameter], base: dict[str, Tensor], share: float) -> None:
    """`share` of the trained weights with `1 - share` of the base's (WiSE-FT, arXiv 2109.01903). For
    LoRA it is that share of the update: W + B A becomes W + share · B A."""
    for name, parameter in trained.items():
        if "lora_B" in name:
            parameter.mul_(share)
        elif "lora_A" not in name:
            parameter.copy_(torch.lerp(base[name], parameter, share))
