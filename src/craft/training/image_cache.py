"""Decoded images in memory, so that decoding does not hold up training."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from craft.data import Sample
from craft.models.visual_tokenizer import VisualTokenizer

# The float that `craft.models.images.pixels` makes of each byte: caching bytes changes no bit.
_PIXEL = ((torch.arange(256, dtype=torch.float64) * (1 / 255)).to(torch.float32) - 0.5) / 0.5


def image_key(source: Any) -> Any:
    """What tells two image sources apart: the path, or the object itself."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else id(source)


class ImageCache:
    """What the vision tower takes of each image, kept as bytes until the memory limit is reached.

    With a frozen stem the stem's output is kept instead. It is computed one image at a time, so that its bits
    do not depend on which batch an image was first met in (a resumed run meets it in another one).

    Args:
        visual: decodes (and runs its tower's stem).
        limit: most bytes to keep; beyond them images are decoded each time.
        through_stem: keep the stem's output instead of pixels.
    """

    def __init__(self, visual: VisualTokenizer, limit: int, through_stem: bool = False) -> None:
        self.visual = visual
        self.limit = limit
        self.through_stem = through_stem
        self.bytes = 0
        self._kept: dict[Any, Tensor] = {}

    def get(self, samples: Sequence[Sample]) -> Tensor:
        """Pixels float32 `[B, 3, S, S]` on the CPU; with a frozen stem its maps `[B, C, h, w]`.

        Raises:
            DataError: an image cannot be read.
        """
        stacked = torch.stack([self._one(sample) for sample in samples])
        return stacked if self.through_stem else _PIXEL[stacked.long()]

    def _one(self, sample: Sample) -> Tensor:
        key = image_key(sample.image)
        if key in self._kept:
            return self._kept[key]
        pixels = self.visual.preprocess([sample.image])
        if self.through_stem:
            with torch.no_grad():
                value = self.visual.vision_tower.run_stem(pixels.to(self.visual.device))[0].float()  # type: ignore[operator]
        else:
            value = ((pixels[0] * 0.5 + 0.5) * 255).round().to(torch.uint8)
        size = value.numel() * value.element_size()
        if self.bytes + size <= self.limit:
            self._kept[key] = value
            self.bytes += size
        return value
