"""Opening pictures: every mode becomes RGB, every broken source is named."""

import inspect
import io
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from craft.core.errors import DataError
from craft.data import Sample, contact_sheet, open_image
from craft.data.images import FORMATS, image_bytes_hash, lazy_image

RNG = np.random.default_rng(0)
RGB = Image.fromarray(RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8))


def png(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_what_pillow_converts_it_to(mode: str) -> None:
    image = RGB.convert(mode)
    opened = open_image(image)
    assert opened.mode == "RGB" and opened.size == (10, 12)
    assert opened.tobytes() == image.convert("RGB").tobytes()


def test_alpha_is_dropped_not_composited() -> None:
    image = Image.new("RGBA", (2, 2), (200, 100, 50, 0))
    assert open_image(png(image)).getpixel((0, 0)) == (200, 100, 50)


def test_palette_with_transparency_bytes() -> None:
    image = RGB.convert("P")
    data = png(image, transparency=bytes(range(256)))
    assert open_image(data).tobytes() == image.convert("RGB").tobytes()


def test_sixteen_bit_grey_is_scaled() -> None:
    grey = np.array([[0, 257 * 77], [65535, 20000]], np.uint16)
    opened = open_image(png(Image.fromarray(grey)))
    assert np.array_equal(np.asarray(opened)[:, :, 0], grey // 257)
    assert open_image(grey).tobytes() == opened.tobytes()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("way", range(1, 9))
def test_exif_rotation_is_applied_once(way: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = way
    given = Image.open(io.BytesIO(png(RGB, format, exif=exif)))
    wanted = ImageOps.exif_transpose(given)
    opened = open_image(png(RGB, format, exif=exif))
    assert opened.size == wanted.size == ((10, 12) if way < 5 else (12, 10))
    assert opened.tobytes() == wanted.tobytes() == open_image(png(opened)).tobytes()


def test_broken_exif_leaves_the_picture() -> None:
    """Cameras write it; the pixels are whole."""
    turned = b"MM\0*" + struct.pack(">IH", 8, 2)  # orientation 6, and a resolution that is text
    turned += struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHI4sI", 0x011A, 2, 4, b"abc\0", 0)
    assert open_image(png(RGB, exif=b"garbage")).tobytes() == RGB.tobytes()
    upright = RGB.transpose(Image.Transpose.ROTATE_270).tobytes()
    assert open_image(png(RGB, exif=b"Exif\0\0" + turned)).tobytes() == upright


def test_path_bytes_image_and_array_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    RGB.save(path)
    wanted = RGB.tobytes()
    for source in (path, str(path), path.read_bytes(), RGB, np.asarray(RGB), np.asarray(RGB) / 255):
        assert open_image(source).tobytes() == wanted


def test_pictures_of_another_palette_are_other_pictures() -> None:
    one, other = (Image.new("P", (2, 2)) for _ in range(2))
    one.putpalette([255, 0, 0])
    other.putpalette([0, 0, 255])
    assert image_bytes_hash(one) != image_bytes_hash(other)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_truncated_files_are_named_with_their_line(tmp_path: Path, format: str) -> None:
    noisy = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = png(noisy, format)
    path = tmp_path / f"cut.{format.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=rf"^rows.jsonl:7: the image .*cut\.{format.lower()} is "):
        open_image(path, "rows.jsonl:7")


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    RGB.resize((40, 40)).save(path)
    for limit in (100, 1000):  # over twice the limit Pillow refuses, above the limit it only warns
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=r"big\.png"):
            open_image(path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.png", "does not exist"),
        (".", "is a folder"),
        (b"words, not pixels", "not an image"),
        (b"", "not an image"),
        (np.zeros((2, 2, 2), np.uint8), r"shape \(2, 2, 2\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (np.full((2, 2), 7.0), r"0\.\.1"),
        (np.zeros((2, 2), np.int64), "dtype int64"),
        (np.array([[np.nan]]), r"0\.\.1"),
    ],
)
def test_what_is_not_a_picture_is_refused(source: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_image(source)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("content", [b"\0\0\0\x18ftypheic\0\0\0\0", b"whatever"])
def test_a_kind_that_cannot_be_read_is_to_be_converted(tmp_path: Path, content: bytes) -> None:
    """By its content (telephones name HEIC .jpg at times), or by its name."""
    path = tmp_path / ("a.jpg" if b"ftyp" in content else "a.heic")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not an image that can be opened.*Convert it to JPEG or PNG"):
        open_image(path)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    ("format", "mode"),
    [("EPS", "RGB"), ("TGA", "RGB"), ("ICO", "RGB"), ("PCX", "RGB"), ("SGI", "RGB")],
)
def test_formats_off_the_list_are_refused_whatever_a_file_is_called(
    tmp_path: Path, format: str, mode: str
) -> None:
    """Pillow itself would open each of them, and start Ghostscript for EPS."""
    path = tmp_path / "a.png"
    path.write_bytes(EPS if format == "EPS" else png(RGB.convert(mode), format))
    for source in (str(path), path.read_bytes()):
        with pytest.raises(DataError, match="is not an image that can be opened"):
            open_image(source)
    data = Sample("a", str(path), "What?", "a")
    with pytest.raises(DataError, match=r"a\.png is not an image"):
        contact_sheet([data])


def test_an_eps_called_png_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "a.png").write_bytes(EPS)
    with pytest.raises(DataError, match=r"it is PostScript \(EPS\).*Convert it to JPEG or PNG"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_on_the_list_is_opened(format: str) -> None:
    if format not in Image.SAVE:
        pytest.skip(f"this build of Pillow does not write {format}, so the test has no such image to open")
    options = {"save_all": True, "append_images": [RGB]} if format == "MPO" else {}
    with lazy_image(io.BytesIO(png(RGB, format, **options))) as image:
        assert image.size == RGB.size and image.format in (format, "MPO")


OPENERS = ("Image.open", "imread", "ImageFile.Parser", "ImageShow")
ROOT = Path(__file__).parents[2]


def test_pictures_are_opened_in_one_function() -> None:
    """No other place in src, paper, train_tiny or scripts opens a picture, and that one names the formats."""
    lines = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("src", "paper", "train_tiny", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if any(f"{opener}(" in line for opener in OPENERS) or "from PIL.Image import" in line
    ]
    (line,) = lines
    assert line.startswith("src/craft/data/images.py: ") and "formats=" in line
    assert not {"EPS", "WMF", "FPX", "MIC", "TGA"} & set(FORMATS)


def test_an_object_of_another_kind_is_refused() -> None:
    unchecked = inspect.unwrap(open_image)  # the tests' runtime type check would speak first
    with pytest.raises(DataError, match=r"^a\.jsonl:1: cannot make an image from a float"):
        unchecked(3.5, "a.jsonl:1")  # pyright: ignore[reportArgumentType]
