"""Light random augmentation of training images, so that a short run does not memorise single images."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from craft.core.seeding import rng

# The ranges at strength 1: rotation (degrees), shift (of the side), log zoom, contrast, brightness.
_ROTATION, _SHIFT, _ZOOM, _CONTRAST, _BRIGHTNESS = 12.0, 0.08, 0.15, 0.25, 0.15


def augment(pixels: Tensor, ids: Sequence[str], seed: int, step: int, strength: float = 1.0) -> Tensor:
    """Rotate, shift, zoom and re-light each image at random. No image is mirrored, which would change digits.

    A pure function of seed, step and sample id: other samples of the batch and a resumed run change nothing.

    Args:
        pixels: float `[B, 3, S, S]` in [-1, 1].
        ids: the B samples' ids.
        seed: the seed of the run.
        step: the optimiser step.
        strength: scales all ranges; 0 returns `pixels`.

    Source: ours; the paper names no augmentation.
    """
    if strength == 0:
        return pixels
    if pixels.device.type == "mps":  # before torch 2.13, it has no padding_mode="border"
        return augment(pixels.cpu(), ids, seed, step, strength).to(pixels.device)
    views, tones = [], []
    for name in ids:
        random = rng(seed, "augment", step, name)
        rotation, across, down, zoom, contrast, brightness = (
            random.uniform(-1, 1) * strength for _ in range(6)
        )
        angle, size = math.radians(_ROTATION * rotation), math.exp(_ZOOM * zoom)
        cos, sin = math.cos(angle) * size, math.sin(angle) * size
        views.append([[cos, -sin, 2 * _SHIFT * across], [sin, cos, 2 * _SHIFT * down]])
        tones.append([1 + _CONTRAST * contrast, _BRIGHTNESS * brightness])
    grid = F.affine_grid(pixels.new_tensor(views), list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    gain, offset = pixels.new_tensor(tones)[:, :, None, None, None].unbind(1)
    return (moved * gain + offset).clamp(-1, 1)
