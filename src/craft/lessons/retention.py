"""Retention of the classes that training never sees. Source: ours.

A tower that trains on few classes assigns every image to one of them. There are two remedies:

- the retention loss: CRAFT mixes two images of different classes, so that the result shows neither, and
  keeps the tower's features of such mixed images close to the base tower's;
- blending: the result is a weighted mean of the trained tower and the base tower (WiSE-FT).
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from craft.core.seeding import rng
from craft.data import Sample
from craft.models.vision_tower import VisionTower, forward_of
from craft.training.lesson import Settled, do_nothing

FEW = 30
"""The number of classes below which both remedies apply. With fewer, a tower learns to distinguish only these
classes; with more, it learns the domain. Chosen on development images (`docs/results/development.md`)."""

RETENTION_OF_FEW = 3.0
"""The weight of the retention loss with few classes."""

BLEND_OF_FEW, BLEND_OF_MANY = 0.3, 1.0
"""The share of the trained weights in the result without the retention loss, for few and many classes."""

MIXED = 1 / 3
"""The number of mixed images per training image. Each costs one more pass of the tower."""

_SHARES = 0.35, 0.65  # the range of the weight of the first image


def class_count(samples: Sequence[Sample]) -> int:
    """The number of classes in training, or of distinct answers if samples have no labels."""
    return len({sample.concept for sample in samples})


# The retention loss


def retention_weight(
    weight: float | None, samples: Sequence[Sample], earlier: Settled | None = None
) -> float:
    """The weight of the retention loss.

    Args:
        weight: the setting; None is `RETENTION_OF_FEW` with fewer than `FEW` classes, else 0.
        samples: the training set.
        earlier: the choices of the run to resume. A run that a version without this loss started continues
            without it.

    The default was chosen on development images (`docs/results/development.md`).
    """
    if earlier is not None and earlier.retention is None:
        return 0.0
    if weight is not None:
        return weight
    return RETENTION_OF_FEW if class_count(samples) < FEW else 0.0


def base_features(tower: VisionTower, from_stem: bool) -> Callable[[Tensor], Tensor]:
    """A function that returns the features `[B, N, d]` of a copy of `tower` as it is now, without gradient.

    Args:
        tower: the vision tower before training.
        from_stem: the function takes the frozen stem's maps instead of pixels.

    It is a function and not a module, so that data parallelism neither shards nor synchronises the copy:
    processes without mixed images do not run it.
    """
    run = forward_of(copy.deepcopy(tower).requires_grad_(False).eval(), from_stem)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return run(images, with_cls=False)[0]

    return features


def partners(samples: Sequence[Sample], seed: int) -> dict[int, int]:
    """A random choice of images, each with a random image of another class: index -> index.

    It is the same in every epoch, so that both images can be decoded in advance.

    Args:
        samples: one for each image.
        seed: the seed of the run.
    """
    pairs = {}
    for index, sample in enumerate(samples):
        draw = rng(seed, "partner", sample.id)
        if draw.random() < MIXED:
            tries = (draw.randrange(len(samples)) for _ in range(100))
            other = next((i for i in tries if samples[i].concept != sample.concept), None)
            if other is not None:
                pairs[index] = other
    return pairs


def mix(images: Tensor, others: Tensor, ids: Sequence[str], seed: int, step: int) -> Tensor:
    """Blend each image with another, about half of each: a pure function of seed, step and sample id.

    Args:
        images, others: `[B, C, h, w]`, pixels or maps of the frozen stem.
        ids: the ids of the B samples of `images`.
        seed: the seed of the run.
        step: the optimiser step.

    Source: mixup (arXiv 1710.09412), which uses such images for another purpose.
    """
    shares = [rng(seed, "mix", step, name).uniform(*_SHARES) for name in ids]
    return torch.lerp(others, images, images.new_tensor(shares)[:, None, None, None])


# Blending


def kept_share(blend: float | None, samples: Sequence[Sample], retention: float = 0.0) -> float:
    """The share of the trained weights in the result, in (0, 1].

    Args:
        blend: the setting; with None it depends on the number of classes.
        samples: the training set.
        retention: the weight of the retention loss. If it is not 0, the default share is 1.

    Both shares were chosen on development images (`docs/results/development.md`).
    """
    if blend is not None:
        return blend
    if retention:
        return 1.0
    return BLEND_OF_FEW if class_count(samples) < FEW else BLEND_OF_MANY


def blended(trained: dict[str, nn.Parameter], share: float | None) -> Callable[[], None]:
    """A function that replaces the trained weights, in place, by those of the result.

    Args:
        trained: the parameters, before training.
        share: the share of the trained weights; with 1 or None the function does nothing.
    """
    if share is None or share == 1:
        return do_nothing
    base = {name: parameter.detach().clone() for name, parameter in trained.items()}
    return partial(_blend, trained, base, share)


@torch.no_grad()
def _blend(trained: dict[str, nn.Parameter], base: dict[str, Tensor], share: float) -> None:
    """Set weights to share · trained + (1 - share) · base (WiSE-FT, arXiv 2109.01903).

    For LoRA this scales the update: W + B A becomes W + share · B A.
    """
    for name, parameter in trained.items():
        if "lora_B" in name:
            parameter.mul_(share)
        elif "lora_A" not in name:
            parameter.copy_(torch.lerp(base[name], parameter, share))
