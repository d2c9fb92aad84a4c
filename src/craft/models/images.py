"""Images in any form -> the pixel tensor that a vision tower takes (§10)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from craft.core.errors import DataError
from craft.data.images import open_image

BARS = {"pad": (127, 127, 127), "pad-clip": (122, 116, 104), "pad-clip-bilinear": (122, 116, 104)}
"""Aspect modes that pad to a square, and their colours: the mean by which pixels are normalised (0.5, or
CLIP's), rounded as in VILA-U and LLaVA, int(mean * 255)."""

LONGEST = 16384
"""An image with a side longer than this (pixels) is made smaller before it is padded; padding one of
100000 x 1 would take 28 GiB."""

ASPECTS = ("resize", "crop", "crop-lanczos", *BARS)


def _square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Pad to a square with the image in the centre."""
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


def _cropped(image: Image.Image, size: int, filter: Image.Resampling) -> Image.Image:
    """Scale the shorter side to `size` and crop the central square, as in CLIP and LLaVA."""
    width, height = image.size
    if max(width, height) > 100 * min(
        width, height
    ):  # a strip: scale only its middle, which is all that remains
        reach = 4 * min(width, height)
        left, top = max(0, width // 2 - reach), max(0, height // 2 - reach)
        image = image.crop((left, top, min(width, left + 2 * reach), min(height, top + 2 * reach)))
        width, height = image.size
    wide, high = (size * side // min(width, height) for side in (width, height))
    image = image.resize((wide, high), filter)
    left, top = (wide - size) // 2, (high - size) // 2
    return image.crop((left, top, left + size, top + size))


def square_bytes(source: Any, size: int, aspect: str = "resize") -> np.ndarray:
    """One image as a square, before its values are scaled: uint8 `[3, S, S]`.

    Args:
        source, size, aspect: as in `pixels`.

    Raises:
        DataError: the image cannot be read, or the aspect mode is unknown.
    """
    if aspect not in ASPECTS:
        raise DataError(f"The image aspect mode {aspect!r} is unknown; use one of {', '.join(ASPECTS)}.")
    image = open_image(source, alpha="white" if aspect == "crop-lanczos" else "drop")
    if aspect == "crop":
        image = _cropped(image, size, Image.Resampling.BICUBIC)
    if aspect == "crop-lanczos":
        image = _cropped(image, size, Image.Resampling.LANCZOS)
    if aspect in BARS:
        image = _square(image, BARS[aspect])
    if image.size != (size, size):
        bilinear = aspect == "pad-clip-bilinear"
        image = image.resize(
            (size, size), Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
        )
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def scaled(values: Tensor) -> Tensor:
    """Scale bytes for the tower: uint8 of any shape -> float32, `(x / 255 - 0.5) / 0.5`.

    The quotient is rounded to float32 once. The reference computes in float64 and gets the same for each of
    the 256 bytes.
    """
    return values.to(torch.float32).div_(255).sub_(0.5).div_(0.5)


def pixels(images: Sequence[Any], size: int, aspect: str = "resize") -> Tensor:
    """Convert images to the tower's input.

    Every image becomes RGB *before* it is resized, as in VILA-U's training loader. (VILA-U's inference
    function resizes RGBA images, and PIL then premultiplies by alpha, which gives other pixels.)

    Args:
        images: paths, bytes, PIL images or arrays, as for `craft.data.images.open_image`.
        size: side S of the square.
        aspect: "resize" (distort to the square, bicubic), "pad" (grey bars), "pad-clip" (bars of CLIP's mean
            colour), "crop" (the central square) or "crop-lanczos" (the same by Lanczos resampling, with
            transparency blended on white; Chameleon's).

    Returns:
        float32 `[B, 3, S, S]`, `(x / 255 - 0.5) / 0.5`.

    Raises:
        DataError: an image cannot be read, the list is empty, or the aspect mode is unknown.
    """
    if len(images) == 0:
        raise DataError("The list of images is empty; give at least one image.")
    stacked = torch.from_numpy(np.stack([square_bytes(source, size, aspect) for source in images]))
    return scaled(stacked)


def float_pixels(images: Sequence[Any], size: int, antialias: bool = True) -> Tensor:
    """The pixels of Tar's understanding script, which resizes values instead of bytes; for `LVLM.encode`.

    Its evaluation on benchmarks resizes bytes, as `pixels` does with the aspect mode "resize".

    Args:
        images, size: as for `pixels`.
        antialias: as torchvision 0.17 and later do; without it as torchvision 0.16, which Tar's code pins.

    Returns:
        float32 `[B, 3, S, S]`: `(x / 255 - 0.5) / 0.5`, then a bilinear resize.

    Raises:
        DataError: an image cannot be read.
    """
    resized = []
    for source in images:
        values = torch.from_numpy(np.asarray(open_image(source), dtype=np.uint8).copy()).permute(2, 0, 1)
        whole = scaled(values)[None]
        if whole.shape[-2:] != (size, size):
            whole = F.interpolate(whole, (size, size), mode="bilinear", antialias=antialias)
        resized.append(whole[0])
    return torch.stack(resized)
