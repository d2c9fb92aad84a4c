"""Light random views of training images, so that a short run does not learn single pictures by heart."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from craft.core.seeding import rng

# At strength 1, the widest turn (degrees), shift (of the side), zoom, change of contrast and of light.
_TURN, _SHIFT, _ZOOM, _CONTRAST, _LIGHT = 12.0, 0.08, 0.15, 0.25, 0.15


def augment(pixels: Tensor, ids: Sequence[str], seed: int, step: int, strength: float = 1.0) -> Tensor:
    """Turn, shift, zoom and re-light each image at random; nothing is mirrored, which would change digits.

    A pure function of seed, step and sample id: batch mates and resuming change nothing.

    Args:
        pixels: float `[B, 3, S, S]` in [-1, 1].
        ids: the B samples' ids.
        seed: the run's.
        step: the optimiser step.
        strength: scales every range; 0 gives `pixels` back.

    Source: ours; the paper names no augmentation.
    """
    if strength == 0:
        return pixels
    if pixels.device.type == "mps":  # which before torch 2.13 samples without a border only
        return augment(pixels.cpu(), ids, seed, step, strength).to(pixels.device)
    views, tones = [], []
    for name in ids:
        random = rng(seed, "augment", step, name)
        turn, across, down, zoom, contrast, light = (random.uniform(-1, 1) * strength for _ in range(6))
        angle, size = math.radians(_TURN * turn), math.exp(_ZOOM * zoom)
        cos, sin = math.cos(angle) * size, math.sin(angle) * size
        views.append([[cos, -sin, 2 * _SHIFT * across], [sin, cos, 2 * _SHIFT * down]])
        tones.append([1 + _CONTRAST * contrast, _LIGHT * light])
    grid = F.affine_grid(pixels.new_tensor(views), list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    gain, offset = pixels.new_tensor(tones)[:, :, None, None, None].unbind(1)
    return (moved * gain + offset).clamp(-1, 1)
