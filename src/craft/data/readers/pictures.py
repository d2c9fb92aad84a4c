"""The image that a row names: a path, a URL, the bytes of a file as they are or in base64, or a part of a
larger file."""

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from craft.core.errors import DataError
from craft.data.images import ImageSource, Packed
from craft.data.readers.conversations import images_in
from craft.data.spelling import brief, is_text, refuse_locale

Fetch = Callable[[str], Path]
"""Takes the URL of an image and returns a file with it."""

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""The most bytes of a file's name, and of a path, on the usual systems."""

_BASE64 = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkq|TU0A)[^.]{60,}")
"""JPEG, PNG, GIF, WebP, BMP and TIFF in base64, by their first characters. Paths have a "."."""

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://|(file):/", re.IGNORECASE)


def one_picture(values: Mapping[str, Any], origin: str) -> Any:
    """The image of a flat row as the row names it: `image`, `images` with one entry, or `file_name` (the
    metadata of an image folder). None if the row names none.

    Raises:
        DataError: there are several, or `image` and `images` name different ones.
    """
    images = images_in(values, origin)
    if len(images) > 1:
        raise DataError(f"{origin}: {len(images)} images. A row must be about exactly one.")
    return images[0] if images else None


def read_picture(
    value: Any, base: Path, origin: str, fetch: Fetch | None = None, inside: Path | None = None
) -> ImageSource:
    """The image that a row names: a path, bytes, a data URI, base64, a URL, or a part of a larger file.

    Args:
        value: what the row has.
        base: the folder that paths start from.
        origin: where the row is, for messages.
        fetch: fetches an image from a URL; None refuses URLs.
        inside: the folder that paths must not leave, also not by a link; None allows all.

    Raises:
        DataError: it is none of these, or a URL that is not, or cannot be, fetched, or a path that leaves
            `inside`.
    """
    if isinstance(value, Packed):
        return value
    if isinstance(value, Mapping) and ("url" in value or "path" in value or "bytes" in value):
        value = value.get("bytes") or value.get("url") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{origin}: 'image' must be the path of a file, not {brief(value)}.")
    text = value.strip()
    if not is_text(text):
        raise DataError(f"{origin}: 'image' contains half a character ({brief(text)}). Correct it.")
    if text[:5].lower() == "data:":
        return _from_data_uri(text, origin)
    if _BASE64.fullmatch(text):
        return _decoded(text, origin)
    if address := _ADDRESS.match(text):
        if address[0].lower() in ("http://", "https://"):
            return _fetched(text, origin, fetch)
        text = _file_path(text, origin)
    path = _path(text, base, origin)
    if inside is not None and not os.path.realpath(path).startswith(
        os.path.join(os.path.realpath(inside), "")
    ):
        raise DataError(
            f"{origin}: the image {path} is outside {inside}, and what is prepared may be shared. Name the "
            "folder that holds all images with --root, or allow it with --allow-outside."
        )
    return path


def _path(text: str, base: Path, origin: str) -> str:
    """The path of a file as the row writes it, with "/" for "\\\\" (Windows), or in the other Unicode form
    (macOS): the first of these that exists, or the first if none does."""
    size = len(text.encode())
    if size > LONGEST_NAME:  # a name in it may be too long
        names = [len(name.encode()) for name in re.split(r"[/\\]", text)]
        if size > LONGEST_PATH or max(names) > LONGEST_NAME:
            raise DataError(
                f"{origin}: 'image' is no path, because no file has a name of so many characters "
                f"({len(text)}): {brief(text)}. Give a path, or a file's bytes in base64."
            )
    if "\0" in text:
        raise DataError(f"{origin}: the path {brief(text)} contains a NUL character. Correct it.")
    if text.isascii() and "\\" not in text:
        return str(base / text)
    refuse_locale([text])
    slashed = text.replace("\\", "/")
    forms = (text, slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD")))
    return next((path for form in forms if os.path.isfile(path := str(base / form))), str(base / slashed))


def _file_path(text: str, origin: str) -> str:
    """The path of a `file:` address."""
    match = re.fullmatch(r"file:(?://(?:localhost)?)?(/(?!/).*)", text, re.IGNORECASE | re.DOTALL)
    if match is None:
        raise DataError(
            f"{origin}: CRAFT does not read images from {brief(text)}. Download them, and give their paths."
        )
    path = unquote(match[1])
    return path[1:] if re.match(r"/[A-Za-z]:[/\\]", path) else path


def _fetched(url: str, origin: str, fetch: Fetch | None) -> str:
    if fetch is None:
        raise DataError(
            f"{origin}: the image is a URL ({url[:80]}), and CRAFT downloads nothing unless asked. "
            "Run `craft data prepare --download`, and use the folder that it writes."
        )
    try:
        return str(fetch(url))
    except DataError as error:
        raise DataError(f"{origin}: {error}") from error


def _from_data_uri(text: str, origin: str) -> bytes:
    head, comma, body = text.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise DataError(f"{origin}: the image is a data URI that cannot be read (not base64).")
    return _decoded(body, origin)


def _decoded(text: str, origin: str) -> bytes:
    """The bytes that base64 stands for: also in its form for URLs, on several lines, or without padding."""
    body = re.sub(r"\s", "", text).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        if not body:
            raise ValueError("it is empty")
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (ValueError, binascii.Error) as error:
        raise DataError(
            f"{origin}: the image is base64 of {len(text)} characters that cannot be read ({error}). It may "
            "be cut short, as a spreadsheet cuts a long cell."
        ) from error
