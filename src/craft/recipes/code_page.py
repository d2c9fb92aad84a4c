"""The page of `craft show`: every image's codes in one HTML file that needs nothing else."""

import base64
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from craft.core.files import atomic_write_text
from craft.recipes.code_map import CodeMap, ShownImage, code_colours


def write_page(path: str | Path, about: str, images: Sequence[ShownImage], size: int) -> Path:
    """Write the page: a grid per image and tower, with hover, and a slider for the keep ratio.

    Args:
        path: the file.
        about: model and encoder, in its title line.
        images: what to show.
        size: K, the number of codes per level.

    Returns:
        The path.
    """
    data = {
        "about": about,
        "size": size,
        "images": [_image(image) for image in images],
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    template = files("craft.recipes").joinpath("code_page.html").read_text(encoding="utf-8")
    atomic_write_text(path, template.replace("/*DATA*/", text))
    return Path(path)


def _image(image: ShownImage) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image.pixels).save(buffer, format="PNG")
    picture = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    maps = [_map(found) for found in image.maps]
    colours = {
        str(code): f"rgba({red * 255:.0f},{green * 255:.0f},{blue * 255:.0f},.72)"
        for code, (red, green, blue) in code_colours(image.maps).items()
    }
    facts = {"title": image.title, "grid": list(image.grid), "picture": picture}
    return {**facts, "colours": colours, "maps": maps}


def _map(found: CodeMap) -> dict[str, Any]:
    return {
        "tower": found.tower,
        "codes": found.codes.tolist(),
        "residual": _short(found.residual),
        "share": None if found.share is None else _short(found.share),
        "rank": None if found.rank is None else found.rank.tolist(),
    }


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
