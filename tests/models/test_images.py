"""Pixels: value range, aspect modes, and bad images. (Parity with the reference: tests/golden.)"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from craft.core.errors import DataError
from craft.models.images import pixels, scaled


def test_range_and_shape() -> None:
    black, white = Image.new("RGB", (9, 9)), Image.new("RGB", (5, 7), "white")
    values = pixels([black, white], 16)
    assert values.shape == (2, 3, 16, 16) and values.dtype == torch.float32
    assert (values[0] == -1).all() and (values[1] == 1).all()


def test_pad_centres_the_picture_on_grey() -> None:
    values = pixels([Image.new("RGB", (8, 4), "white")], 8, "pad")
    assert (values[0, :, 3:5] == 1).all()
    assert torch.allclose(values[0, :, 0], torch.tensor(127 / 255 * 2 - 1))


def test_sources_are_equal(tmp_path: Path) -> None:
    image = Image.effect_noise((12, 10), 60).convert("RGB")
    path = tmp_path / "image.png"
    image.save(path)
    one = pixels([image], 8)
    for source in (str(path), path, path.read_bytes()):
        assert torch.equal(pixels([source], 8), one)


def test_bad_images_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 60).save(whole)
    short = tmp_path / "short.png"
    short.write_bytes(whole.read_bytes()[:500])
    text = tmp_path / "text.png"
    text.write_text("no image")
    for bad in (short, text, tmp_path / "missing.png"):
        with pytest.raises(DataError, match=bad.name):
            pixels([bad], 8)
    with pytest.raises(DataError, match="list of images is empty"):
        pixels([], 8)
    with pytest.raises(DataError, match="anyres"):
        pixels([whole], 8, "anyres")


def test_every_byte_is_scaled_as_the_reference_does():
    values = torch.arange(256, dtype=torch.uint8)
    reference = ((values.to(torch.float64) * (1 / 255)).to(torch.float32) - 0.5) / 0.5
    assert torch.equal(scaled(values), reference)


@pytest.mark.parametrize("aspect", ["resize", "pad", "crop"])
@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000)])
def test_a_strip_does_not_fill_the_memory(
    size: tuple[int, int], aspect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    new, resize = Image.new, Image.Image.resize
    strip = new("RGB", size, "white")

    def counted(mode: str, size: tuple[int, int], *more: object) -> Image.Image:
        asked.append(size[0] * size[1])
        assert asked[-1] < 2**29, f"{size} would be made"
        return new(mode, size, *more)  # type: ignore[arg-type]

    def resized(image: Image.Image, size: tuple[int, int], *more: object, **named: object) -> Image.Image:
        asked.append(size[0] * size[1])
        assert asked[-1] < 2**29, f"{size} would be made"
        return resize(image, size, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "new", counted)
    monkeypatch.setattr(Image.Image, "resize", resized)
    values = pixels([strip], 336, aspect)
    assert values.shape == (1, 3, 336, 336) and asked and strip.size == size
    if aspect != "pad":
        assert (values == 1).all()


def test_the_middle_of_a_strip_is_that_of_the_whole() -> None:
    strip = Image.effect_noise((2020, 20), 60).convert("RGB")
    whole = strip.resize((3232, 32), Image.Resampling.BICUBIC).crop((1600, 0, 1632, 32))
    expected = torch.from_numpy(np.array(whole).transpose(2, 0, 1))
    assert torch.equal(pixels([strip], 32, "crop")[0], scaled(expected))
