"""Pixels: value range, aspect modes, and bad images. (Parity with the reference: tests/golden.)"""

from pathlib import Path

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
    with pytest.raises(DataError, match="No images"):
        pixels([], 8)
    with pytest.raises(DataError, match="anyres"):
        pixels([whole], 8, "anyres")


def test_every_byte_is_scaled_as_the_reference_does():
    values = torch.arange(256, dtype=torch.uint8)
    reference = ((values.to(torch.float64) * (1 / 255)).to(torch.float32) - 0.5) / 0.5
    assert torch.equal(scaled(values), reference)
