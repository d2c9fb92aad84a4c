"""Images: from whatever a user holds to the pixel tensor that a vision tower takes (§10)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from craft.core.errors import DataError
from craft.data.images import open_image

BARS = {"pad": (127, 127, 127), "pad-clip": (122, 116, 104)}
"""Aspect modes that pad to a square, and with what colour: the mean that pixels are normalised by (0.5, or
CLIP's) as VILA-U and LLaVA round it, int(mean * 255)."""

LONGEST = 16384
"""A picture longer than this (pixels) is made smaller before bars are put around it, which would take 28 GiB
for one of 100000 x 1."""

ASPECTS = ("resize", "crop", *BARS)


def _square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Pad to a square, the picture centred."""
    width, height = image.size
    if width == height:
        return image
    if max(width, height) > LONGEST:
        image = image.copy()
        image.thumbnail((LONGEST, LONGEST))
        width, height = image.size
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def _cropped(image: Image.Image, size: int) -> Image.Image:
    """The shorter side scaled to `size`, and the middle square of it (CLIP's and LLaVA's way)."""
    width, height = image.size
    if max(width, height) > 100 * min(width, height):  # a strip, of which the middle is all that stays
        reach = 4 * min(width, height)
        left, top = max(0, width // 2 - reach), max(0, height // 2 - reach)
        image = image.crop((left, top, min(width, left + 2 * reach), min(height, top + 2 * reach)))
        width, height = image.size
    wide, high = (size * side // min(width, height) for side in (width, height))
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    return image.crop((left, top, left + size, top + size))


def square_bytes(source: Any, size: int, aspect: str = "resize") -> np.ndarray:
    """One image as the square of bytes that the tower takes, before scaling: uint8 `[3, S, S]`.

    Args:
        source, size, aspect: as in `pixels`.

    Raises:
        DataError: the image cannot be read, or the aspect mode is unknown.
    """
    if aspect not in ASPECTS:
        raise DataError(f"Image aspect mode {aspect!r} is not known; there are {', '.join(ASPECTS)}.")
    image = open_image(source)
    if aspect == "crop":
        image = _cropped(image, size)
    if aspect in BARS:
        image = _square(image, BARS[aspect])
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def scaled(values: Tensor) -> Tensor:
    """Bytes as the tower takes them: uint8 of any shape -> float32, `(x / 255 - 0.5) / 0.5`.

    The quotient is rounded once to float32. That is what the reference computes, by way of float64, for each
    of the 256 bytes.
    """
    return values.to(torch.float32).div_(255).sub_(0.5).div_(0.5)


def pixels(images: Sequence[Any], size: int, aspect: str = "resize") -> Tensor:
    """Turn images into the tower's input.

    Every image becomes RGB *before* it is resized, as in VILA-U's training loader. (Its inference function
    resizes an RGBA image as it is, and PIL then premultiplies by alpha: other pixels.)

    Args:
        images: paths, bytes, PIL images or arrays, as `craft.data.images.open_image` takes them.
        size: side S of the square.
        aspect: "resize" (squeeze to the square, bicubic), "pad" (grey bars first), "pad-clip" (bars of CLIP's
            mean colour) or "crop" (the middle).

    Returns:
        float32 `[B, 3, S, S]`, `(x / 255 - 0.5) / 0.5`.

    Raises:
        DataError: an image cannot be read, the list is empty, or the aspect mode is unknown.
    """
    if len(images) == 0:
        raise DataError("No images were given; pass at least one.")
    stacked = torch.from_numpy(np.stack([square_bytes(source, size, aspect) for source in images]))
    return scaled(stacked)
