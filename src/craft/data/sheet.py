"""A contact sheet: a grid of samples with their answers, to look at what a data set holds."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from craft.core.errors import DataError
from craft.data.images import open_image
from craft.data.sample import Sample


def contact_sheet(
    samples: Sequence[Sample], path: str | Path | None = None, columns: int = 8, cell: int = 96
) -> Image.Image:
    """Draw the samples' images in a grid, each above its label or answer; write a PNG if `path` is given.

    Raises:
        DataError: no samples, or an image that cannot be opened.
    """
    if not samples:
        raise DataError("a contact sheet needs at least one sample.")
    columns = min(columns, len(samples))
    rows, caption, gap = -(-len(samples) // columns), 14, 4
    width, height = columns * (cell + gap) + gap, rows * (cell + caption + gap) + gap
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for n, sample in enumerate(samples):
        x, y = gap + n % columns * (cell + gap), gap + n // columns * (cell + caption + gap)
        image = open_image(sample.image, sample.origin)
        scale = cell / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
        sheet.paste(image, (x + (cell - size[0]) // 2, y + (cell - size[1]) // 2))
        text = " ".join(sample.concept.split())[:cell]  # one line; a letter has a pixel at least
        while len(text) > 1 and draw.textlength(text) > cell:
            text = f"{text.removesuffix('…')[:-1].rstrip()}…"
        draw.text((x, y + cell + 1), text, fill="black")
    if path is not None:
        sheet.save(path, format="PNG")
    return sheet
