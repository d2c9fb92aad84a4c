"""The one place that opens images: any `ImageSource` becomes an RGB PIL image, or a `DataError`."""

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, features

from craft.core.errors import DataError


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


ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Packed | Image.Image | np.ndarray
"""A path, the bytes of an image file, an image inside a larger file, a PIL image, or an array [H, W] or
[H, W, 1|3|4] (uint8, uint16, or floats in 0..1)."""

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
    | {".jfif", ".jpe", ".pjpeg", ".pjp", ".mpo", ".apng", ".dib", ".tga"}
)
"""File name endings (lower case) that count as images in a folder of class folders."""

OTHERS = frozenset(
    {".avif", ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".exr", ".dcm"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
)
"""Endings of images that Pillow opens only in some installations, or in none."""

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
    return format in Image.OPEN and (format not in _CODECS or bool(features.check(_CODECS[format])))


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
            f"{len(refused)} of {len(refused) + len(readable)} images in {where} cannot be opened by this "
            f"installation of Pillow ({kinds}): {', '.join(refused[:3])}{', …' if len(refused) > 3 else ''}. "
            "Convert them to JPEG or PNG, or remove them."
        )


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def open_image(source: ImageSource, where: str = "") -> Image.Image:
    """Open and fully decode one image as 8-bit RGB.

    EXIF rotation is applied; grey, palette, alpha and CMYK images go through `convert("RGB")` (alpha is
    dropped, as VILA-U's data path does); 16-bit grey is scaled to 8 bits; of an animation, the first frame.

    Args:
        source: path, bytes of an image file, PIL image, or array (see `ImageSource`).
        where: where this image was declared ("train.jsonl:12"), for the message.

    Raises:
        DataError: the file is missing, not an image, truncated, corrupt or a decompression bomb; or the shape
            or type of an array is not that of an image. The message names `where` and the file.

    Source: ours; the RGB conversion follows VILA-U's `image.convert("RGB")`.
    """
    prefix = f"{where}: " if where else ""
    if isinstance(source, np.ndarray):
        return _from_array(source, prefix)
    if isinstance(source, Image.Image):
        return _decode(source, f"{prefix}the given image")
    if isinstance(source, bytes | bytearray):
        name, stream = f"{prefix}the given image bytes", io.BytesIO(source)
    elif isinstance(source, Packed):
        name, stream = f"{prefix}the image {source}", io.BytesIO(source.read())
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        name = f"{prefix}the image {path}"
        if path.is_dir():
            raise DataError(f"{name} is a folder. Pass the path of an image file.")
        if not path.is_file():
            raise DataError(f"{name} does not exist. Correct the path, or put the file there.")
        try:
            stream = io.BytesIO(path.read_bytes())
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{name} cannot be read: {reason}. Check its permissions.") from error
    else:
        raise DataError(
            f"{prefix}cannot make an image from a {type(source).__name__}. "
            "Pass a path, the bytes of an image file, a PIL image or a numpy array."
        )
    try:
        opened = Image.open(stream)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} is too large to decode safely ({error}). Make it smaller first.") from error
    except Exception as error:  # a decoder may raise anything on a broken file
        foreign = _ending(name) in OTHERS or stream.getvalue()[4:8] == b"ftyp"  # HEIC and similar formats
        fix = "Convert it to JPEG or PNG" if foreign else "Replace the file"
        raise DataError(
            f"{name} is not an image that can be opened ({_reason(error)}). "
            f"{fix}, or remove it from the data."
        ) from error
    return _decode(opened, name)


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


def _decode(image: Image.Image, name: str) -> Image.Image:
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
        return _to_rgb(_upright(image))
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


def _upright(image: Image.Image) -> Image.Image:
    """A copy with the EXIF orientation applied and removed."""
    turn = TURNS.get(orientation(image))
    copy = image.copy() if turn is None else image.transpose(turn)
    copy.info = {name: value for name, value in copy.info.items() if name == "transparency"}
    return copy


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB":
        return image
    if mode.startswith("I"):  # 16-bit grey; PIL would clip it at 255
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("integer pixels outside 0..65535")
        return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    if mode == "F":
        return Image.fromarray(_float_to_bytes(np.asarray(image))).convert("RGB")
    if mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


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
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _reason(error: Exception) -> str:
    text = str(error).split(" <_io", 1)[0].strip()
    return text or type(error).__name__
