"""The one place that opens images: any `ImageSource` becomes an RGB PIL image, or a `DataError`."""

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
from PIL import Image, features

from craft.core.errors import DataError
from craft.data.signatures import CONVERT, kind_of


class Packed(ABC):
    """An image inside a larger file (a tar, a parquet file). Equal objects are the same image.

    Attributes:
        path: the larger file.
    """

    path: str

    @abstractmethod
    def read(self) -> bytes:
        """The bytes of the image's own file.

        Raises:
            DataError: the larger file does not exist any more, or has changed.
        """


@dataclass(frozen=True)
class Deep(Packed):
    """An image of more than 8 bits a value in a data set, whose images all have the same white.

    Attributes:
        source: its path or bytes.
        white: the value that becomes 255.
        clip: whether larger values become white, too; otherwise they are an error.
    """

    source: str | bytes
    white: float
    clip: bool = False

    def __str__(self) -> str:
        return self.source if isinstance(self.source, str) else "in the row"

    def read(self) -> bytes:
        """The bytes of the image's own file."""
        return image_bytes(self.source)


ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Packed | Image.Image | np.ndarray
"""A path, the bytes of an image file, an image inside a larger file, a PIL image, or an array [H, W] or
[H, W, 1|3|4] (uint8, uint16, or floats in 0..1)."""

Alpha = Literal["drop", "white", "keep"]
"""What becomes of transparency: it is dropped, blended on white, or kept (the image is then RGBA)."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "MPO", "JPEG2000")
"""The formats that CRAFT opens, by Pillow's names. Others are refused, whatever a file is called, because
some of Pillow's decoders start other programs (EPS starts Ghostscript)."""

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
    | {".jfif", ".jpe", ".pjpeg", ".pjp", ".mpo", ".apng", ".dib"}
)
"""File name endings (lower case) that count as images in a folder of class folders."""

OTHERS = frozenset(
    {".avif", ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".exr", ".dcm", ".tga"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".eps", ".psd"}
)
"""Endings of images that CRAFT opens only in some installations of Pillow, or in none."""

PICTURES = SUFFIXES | OTHERS
"""All endings of image files."""

_CODECS = {"JPEG2000": "jpg_2000"}
"""Formats that Pillow registers even if it was built without their decoder, with their names in
`features`."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that sets an image upright, by its EXIF orientation."""


def suffixes() -> frozenset[str]:
    """The endings of images that this installation can open."""
    return SUFFIXES | {ending for ending in OTHERS if _opens(Image.registered_extensions().get(ending))}


def _opens(format: str | None) -> bool:
    return (
        format in FORMATS
        and format in Image.OPEN
        and (format not in _CODECS or bool(features.check(_CODECS[format])))
    )


def refuse_unreadable(where: str, names: Sequence[str]) -> None:
    """Refuse images that this installation cannot open, instead of ignoring them.

    An image that also exists in a readable format (a.jpg or a.heic.jpg next to a.heic) is ignored.

    Args:
        where: what the files belong to, for the message.
        names: their paths inside it, with "/" between folders.

    Raises:
        DataError: there are such images. The message says how many, of which kinds, with examples and the
            fix.
    """
    known = suffixes()
    readable = [name for name in names if _ending(name) in known]
    stems = {os.path.splitext(name)[0] for name in readable}
    refused = [name for name in names if _ending(name) in OTHERS - known]
    refused = [name for name in refused if name not in stems and os.path.splitext(name)[0] not in stems]
    if refused:
        kinds = ", ".join(f"{n} {ending}" for ending, n in Counter(map(_ending, refused)).most_common())
        raise DataError(
            f"{len(refused)} of {len(refused) + len(readable)} images in {where} cannot be opened here "
            f"({kinds}): {', '.join(refused[:3])}{', …' if len(refused) > 3 else ''}. "
            "Convert them to JPEG or PNG (with ImageMagick: `magick mogrify -format png FILES`), or remove "
            "them."
        )


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def lazy_image(file: str | os.PathLike[str] | IO[bytes] | io.BytesIO | io.BufferedReader) -> Image.Image:
    """Open an image file of one of the `FORMATS`; its pixels are decoded when they are needed.

    Everything in CRAFT that opens a file as an image goes through this function.

    Raises:
        PIL.UnidentifiedImageError: it is of no such format.
        PIL.Image.DecompressionBombError: it has more pixels than are safe to decode.
        OSError: the file cannot be read.
    """
    Image.init()
    image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, limit {limit}")
    return image


def open_image(source: ImageSource, where: str = "", alpha: Alpha = "drop") -> Image.Image:
    """Open and fully decode one image as 8-bit RGB.

    EXIF rotation is applied; grey, palette, alpha and CMYK images go through `convert("RGB")` (alpha is
    dropped, as VILA-U's data path does, unless `alpha` says otherwise); of an animation, the first frame.
    Grey of more than 8 bits is scaled to 8 bits by the white level of its data set (`Deep`); without one, by
    the range that its values need.

    Args:
        source: path, bytes of an image file, PIL image, or array (see `ImageSource`).
        where: where this image was declared ("train.jsonl:12"), for the message.
        alpha: what becomes of transparency; an image without it is always RGB.

    Raises:
        DataError: the file is missing, not an image, truncated, corrupt or a decompression bomb; or the shape
            or type of an array is not that of an image. The message names `where` and the file.

    Source: ours; the RGB conversion follows VILA-U's `image.convert("RGB")`.
    """
    prefix = f"{where}: " if where else ""
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source, prefix), alpha)
    if isinstance(source, Image.Image):
        return _decode(source, f"{prefix}the given image", alpha=alpha)
    if isinstance(source, bytes | bytearray):
        name, content = f"{prefix}the given image bytes", bytes(source)
    elif isinstance(source, Packed):
        name, content = f"{prefix}the image {source}", source.read()
    elif isinstance(source, str | os.PathLike):
        name = f"{prefix}the image {source}"
        content = _file_content(Path(source), name)
    else:
        raise DataError(
            f"{prefix}cannot make an image from a {type(source).__name__}. "
            "Pass a path, the bytes of an image file, a PIL image or a numpy array."
        )
    try:
        opened = lazy_image(io.BytesIO(content))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} is too large to decode safely ({error}). Make it smaller first.") from error
    except Exception as error:  # a decoder may raise anything on a broken file
        kind, fix = kind_of(content)
        fix = fix or (CONVERT if _ending(name) in OTHERS else "Replace the file")
        reason = f"it is {kind}" if kind else _reason(error)
        raise DataError(
            f"{name} is not an image that can be opened ({reason}). {fix}, or remove it from the data."
        ) from error
    return _decode(opened, name, source if isinstance(source, Packed) else None, alpha)


def _file_content(path: Path, name: str) -> bytes:
    """The bytes of an image file; the errors name it as `name`."""
    if path.is_dir():
        raise DataError(f"{name} is a folder. Pass the path of an image file.")
    if path.is_symlink() and not path.exists():
        raise DataError(f"{name} is a link that leads nowhere ({os.readlink(path)}). {link_fix([path])}.")
    if not path.is_file():
        raise DataError(f"{name} does not exist. Correct the path, or put the file there.")
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{name} cannot be read: {reason}. Check its permissions.") from error


def link_fix(links: Sequence[Path]) -> str:
    """What to do about links that lead nowhere."""
    if any("annex/objects" in os.readlink(link).replace(os.sep, "/") for link in links):
        return "git-annex has not fetched the files: run `git annex get .` there"
    return "Correct the links, fetch the files that they name, or remove the links"


def image_bytes_hash(source: ImageSource) -> str:
    """SHA-256 (hex) of one image: of the bytes of a file, or of mode, size, palette and pixels if decoded.

    Raises:
        DataError: the file is missing or unreadable.
    """
    digest = hashlib.sha256()
    if isinstance(source, np.ndarray):
        digest.update(f"array {source.dtype.str} {source.shape}".encode())
        digest.update(np.ascontiguousarray(source).tobytes())
    elif isinstance(source, Image.Image):
        palette = source.getpalette()
        digest.update(f"image {source.mode} {source.size}{'' if palette is None else palette}".encode())
        digest.update(source.tobytes())
    else:
        digest.update(image_bytes(source))
        if isinstance(source, Deep) and source.white not in (1, 65535):  # other pixels than as 16 bits
            digest.update(f"white {source.white} {source.clip}".encode())
    return digest.hexdigest()


def image_bytes(source: str | os.PathLike[str] | bytes | Packed) -> bytes:
    """The bytes of an image's file, on its own or inside a larger one.

    Raises:
        DataError: the file is missing or unreadable.
    """
    if isinstance(source, bytes | bytearray):
        return bytes(source)
    if isinstance(source, Packed):
        return source.read()
    try:
        with open(source, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise DataError(f"the image {source} cannot be read: {error.strerror or error}.") from error


def image_key(source: ImageSource) -> Hashable:
    """What identifies an image source: its path, its position in a larger file, its bytes, or its `id`."""
    if isinstance(source, str | bytes | Packed):
        return source
    return os.fspath(source) if isinstance(source, os.PathLike) else id(source)


_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"P5", b"P6")


def looks_like_image(path: Path) -> bool:
    """Whether a file starts like an image (a saved error page does not). Decodes nothing."""
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith(_SIGNATURES)
    except OSError:
        return False


def _decode(
    image: Image.Image, name: str, packed: Packed | None = None, alpha: Alpha = "drop"
) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise DataError(
            f"{name} has {image.width} x {image.height} pixels, more than the {limit} that are safe to "
            "decode. Make it smaller first."
        )
    if image.width == 0 or image.height == 0:
        raise DataError(f"{name} has no pixels ({image.width} x {image.height}). Replace the file.")
    try:
        image.load()
        turn = TURNS.get(orientation(image))
        flat = _eight_bits(image, name, packed) if is_deep(image) else image.copy()
        return _to_rgb(flat if turn is None else flat.transpose(turn), alpha)
    except DataError:
        raise
    except Exception as error:  # a decoder may raise anything on a broken file
        raise DataError(
            f"{name} is truncated or corrupt ({_reason(error)}). "
            "Replace the file, or remove it from the data."
        ) from error


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image: 2 to 8 (`TURNS`), or 1, upright. Broken EXIF counts as upright,
    because the pixels may be intact."""
    try:
        value = image.getexif().get(0x0112)
    except Exception:  # a decoder may raise anything on a broken file
        return 1
    return value if value in TURNS else 1


def _to_rgb(image: Image.Image, alpha: Alpha) -> Image.Image:
    """An image of 8 bits or fewer as RGB, without what else its file said (EXIF, …)."""
    image.info = {name: value for name, value in image.info.items() if name == "transparency"}
    if image.mode == "RGB":
        return image
    if image.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if alpha == "drop" or image.mode != "RGBA":
        return image.convert("RGB")
    if alpha == "keep":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


WHITES = tuple(float(2**bits - 1) for bits in (8, 10, 12, 14, 16, 24, 32))
"""The values that are white in grey of more than 8 bits, by the bits that are used."""


def is_deep(image: Image.Image) -> bool:
    """Whether an image is grey of more than 8 bits (Pillow's modes "I;16", "I" and "F")."""
    return image.mode.startswith(("I", "F"))


def deep_values(image: Image.Image, name: str) -> np.ndarray:
    """The values `[H, W]` of an image that `is_deep`, int64 or float64, as its file has them.

    Raises:
        DataError: values that are negative, NaN or infinite.
    """
    values = np.asarray(image)
    if image.mode == "I" and _tag(image, 258) == 32 and _tag(image, 339) == 1:
        values = values.view(np.uint32)  # Pillow reads unsigned TIFF as signed
    values = values.astype(np.float64 if image.mode == "F" else np.int64)
    if not np.isfinite(values).all():
        raise DataError(f"{name} has pixels that are NaN or infinite. Replace them, or remove it.")
    if values.min() < 0:
        raise DataError(
            f"{name} has pixels below 0, down to {values.min():g} (as CT has). CRAFT cannot know which value "
            "is black: save the range that matters as 0..255, or remove it."
        )
    return values


def range_of(image: Image.Image, values: np.ndarray) -> float:
    """The largest value that an image can have by what its file declares, or else has (see `deep_values`)."""
    if image.format == "PPM":
        return 65535.0  # Pillow scales by the file's own white
    bits = _tag(image, 258) or 16
    return float(2**bits - 1) if 8 < bits < 16 else float(values.max())


def white_for(largest: float, floating: bool) -> float:
    """The smallest usual white level that holds the largest value: 1 for floats in 0..1, else of `WHITES`."""
    if floating and largest <= 1:
        return 1.0
    return next((white for white in WHITES if largest <= white), largest)


def _eight_bits(image: Image.Image, name: str, packed: Packed | None) -> Image.Image:
    """Grey of more than 8 bits, scaled by the white level of its data set, or by its own range."""
    values = deep_values(image, name)
    largest = values.max()
    if isinstance(packed, Deep):
        white = packed.white
        if largest > white and not packed.clip:
            raise DataError(
                f"{name} has the value {largest:g}, but white is {white:g} in the data set, by the images "
                "that CRAFT looked at. Say which value is white: `craft data prepare DATA --out DIR "
                "--white-level VALUE`, and use DIR as the data."
            )
        values = np.minimum(values, white)
    else:
        white = white_for(range_of(image, values), image.mode == "F")
        if packed is not None and white != (1 if image.mode == "F" else 65535):
            raise DataError(
                f"{name} has values up to {largest:g}, and one image in a larger file does not say which "
                "value is white. Run `craft data prepare DATA --out DIR`, and use DIR as the data."
            )
    if _tag(image, 262) == 0:  # TIFF's WhiteIsZero, which Pillow applies to 8 bits only
        values = white - values
    if image.mode == "F":
        return Image.fromarray(np.rint(values / white * 255).astype(np.uint8))
    return Image.fromarray((values * 255 // int(white)).astype(np.uint8))


def _tag(image: Image.Image, number: int) -> Any:
    """A tag of a TIFF; of a list, the first value; None for other formats."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value


def _float_to_bytes(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise ValueError("floating-point pixels must lie in 0..1")
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def _from_array(array: np.ndarray, prefix: str) -> Image.Image:
    channels_ok = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not channels_ok or array.size == 0:
        raise DataError(
            f"{prefix}an array of shape {array.shape} is not an image. "
            "Pass [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]."
        )
    try:
        if array.dtype == np.uint16:
            array = (array // 257).astype(np.uint8)
        elif array.dtype == np.bool_:
            array = array.astype(np.uint8) * 255
        elif np.issubdtype(array.dtype, np.floating):
            array = _float_to_bytes(array)
        elif array.dtype != np.uint8:
            raise ValueError(f"dtype {array.dtype}")
    except ValueError as error:
        raise DataError(
            f"{prefix}the array is not an image ({error}). Pass uint8, uint16, or floats in 0..1."
        ) from error
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))


def _reason(error: Exception) -> str:
    text = str(error).split(" <_io", 1)[0].strip()
    return text or type(error).__name__
