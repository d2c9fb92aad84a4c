"""Images: from whatever a user holds to the pixel tensor that a vision tower takes (§10)."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from craft.core.errors import DataError

Aspect = Literal["resize", "pad"]
ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
GREY = (127, 127, 127)  # the mean colour 0.5 as VILA-U rounds it: int(0.5 * 255)


def load_image(source: Any) -> Image.Image:
    """Open an image and convert it to RGB.

    Transparency is dropped *before* any resizing, as VILA-U's training loader does; PIL would otherwise
    resize with premultiplied alpha and give other pixels.

    Args:
        source: a path, encoded bytes, a PIL image, or a uint8 array `[H, W]` or `[H, W, 3]`.

    Returns:
        A PIL image of mode RGB, fully read.

    Raises:
        DataError: the file is missing, is not an image, or is cut short (named in the message).
    """
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"<{type(source).__name__}>"
    try:
        if isinstance(source, Image.Image):
            image = source
        elif isinstance(source, np.ndarray):
            image = Image.fromarray(source)
        elif isinstance(source, bytes):
            image = Image.open(io.BytesIO(source))
        elif isinstance(source, (str, os.PathLike)):
            with Image.open(Path(source)) as opened:
                opened.load()
                image = opened
        else:
            raise DataError(f"An image must be a path, bytes, a PIL image or an array, not {name}.")
        return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"Image {name} does not exist; check the path.") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image that Pillow can read; replace or remove it.") from error
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise DataError(f"Image {name} cannot be read ({error}); replace or remove it.") from error


def _square(image: Image.Image) -> Image.Image:
    """Pad to a square with grey, the picture centred (VILA-U's aspect mode "pad")."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), GREY)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def pixels(images: Sequence[Any], size: int, aspect: str = "resize") -> Tensor:
    """Turn images into the tower's input.

    Args:
        images: sources as `load_image` takes them.
        size: side S of the square.
        aspect: "resize" (squeeze to the square, bicubic) or "pad" (grey bars first).

    Returns:
        float32 `[B, 3, S, S]`, `(x / 255 - 0.5) / 0.5`.

    Raises:
        DataError: an image cannot be read, the list is empty, or the aspect mode is unknown.
    """
    if aspect not in ("resize", "pad"):
        raise DataError(f"Image aspect mode {aspect!r} is not known; use 'resize' or 'pad'.")
    if len(images) == 0:
        raise DataError("No images were given; pass at least one.")
    arrays = []
    for source in images:
        image = load_image(source)
        if aspect == "pad":
            image = _square(image)
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        arrays.append(np.array(image, dtype=np.uint8))
    stacked = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    return (stacked.to(torch.float32).mul(1 / 255) - 0.5) / 0.5
