"""On which pictures a tower keeps the base tower's features, so that it forgets less of the unseen classes.

Trained on few classes, a tower pulls every picture to one of them. So pictures of the domain are made that
show none of them: two of different classes, laid over each other. There features are to stay (`retention`).
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.progress import say
from craft.core.seeding import rng
from craft.data import Sample
from craft.lessons.blending import FEW, class_count

OF_FEW = 3.0
"""The weight of the retention loss where there are few classes."""

MIXED = 1 / 3
"""Mixed pictures per training image: each costs the tower a pass more."""

_SHARES = 0.35, 0.65  # of the first picture


def retention_weight(weight: float | None, samples: Sequence[Sample]) -> float:
    """The weight of the retention loss; says so where it was not set and is not 0.

    Args:
        weight: as set; None is `OF_FEW` with fewer than `FEW` classes, else 0.
        samples: the training set.

    Source: ours; chosen on development images (`docs/concepts.md`).
    """
    if weight is not None:
        return weight
    classes = class_count(samples)
    if classes >= FEW:
        return 0.0
    say(f"retention: weight {OF_FEW:g}, for {classes} classes (0 from {FEW} on)")
    return OF_FEW


def base_features(tower: nn.Module, from_stem: bool) -> Callable[[Tensor], Tensor]:
    """What gives the features `[B, N, d]` of a copy of `tower` as it is now, without gradient.

    Args:
        tower: the vision tower before training.
        from_stem: it is given the frozen stem's maps instead of pixels.

    A function and no module, so that the copy is neither sharded nor sent around: processes without mixed
    pictures do not run it.
    """
    base: Any = copy.deepcopy(tower).requires_grad_(False).eval()
    run = base.after_stem if from_stem else base

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return run(images, with_cls=False)[0]

    return features


def partners(samples: Sequence[Sample], seed: int) -> dict[int, int]:
    """For the images that get mixed, by lot, one of another class each: from index to index.

    The same in every epoch, so that both can be decoded ahead.

    Args:
        samples: one for each image.
        seed: the run's.
    """
    found = {}
    for index, sample in enumerate(samples):
        draw = rng(seed, "partner", sample.id)
        if draw.random() < MIXED:
            tries = (draw.randrange(len(samples)) for _ in range(100))
            other = next((one for one in tries if samples[one].concept != sample.concept), None)
            if other is not None:
                found[index] = other
    return found


def mix(images: Tensor, others: Tensor, ids: Sequence[str], seed: int, step: int) -> Tensor:
    """Each image laid over another, about half of each: a pure function of seed, step and sample id.

    Args:
        images, others: `[B, C, h, w]`, pixels or the frozen stem's maps.
        ids: of the B samples whose images come first.
        seed: the run's.
        step: the optimiser step.

    Source: mixup (arXiv 1710.09412), whose pictures serve another end here.
    """
    shares = [rng(seed, "mix", step, name).uniform(*_SHARES) for name in ids]
    return torch.lerp(others, images, images.new_tensor(shares)[:, None, None, None])
