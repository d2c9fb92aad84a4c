"""Images of requests: data URIs, and addresses of hosts that the server's owner allows."""

import base64
import binascii
import io
from collections.abc import Collection
from urllib.error import HTTPError
from urllib.parse import urlsplit

from PIL import Image

from craft.core.errors import CraftError, DataError
from craft.data.download import FAULTS, fetch
from craft.data.images import image_bytes_hash, lazy_image, open_image
from craft.serving.settings import Limits

TIMEOUT = 10.0
"""Seconds to wait for an image from another host."""


def read_image(url: str, limits: Limits, hosts: Collection[str] = ()) -> tuple[str, Image.Image]:
    """The image at an address, decoded.

    Args:
        url: a data URI, or http(s) to one of `hosts`.
        hosts: whose images the server fetches; none by default.

    Returns:
        (SHA-256 of the pixels, RGB image).

    Raises:
        CraftError: the address is of another kind or host, or the image is too large, damaged or no image. No
            message has the image's bytes.
    """
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        content = _data_uri(url)
    elif scheme in ("http", "https"):
        content = _fetch(url, limits, hosts)
    else:
        kind = repr(scheme[:12]) if ":" in url[:12] else "a path"
        raise CraftError(
            f"An image is a data URI (data:image/png;base64,…) or an http(s) address, not {kind}."
        )
    if len(content) > limits.body:
        raise CraftError(f"The image has {len(content)} bytes, and the server takes {limits.body}.")
    try:
        with lazy_image(io.BytesIO(content)) as header:
            size = header.width * header.height
    except Exception:  # `open_image` says what is wrong
        size = 0
    if size > limits.pixels:
        raise CraftError(f"The image has {size} pixels, and the server takes {limits.pixels}.")
    try:
        image = open_image(content, "image_url", alpha="keep")
    except DataError as error:
        raise CraftError(str(error)) from error
    return image_bytes_hash(image), image


def _data_uri(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise CraftError("A data URI of an image has the form data:image/png;base64,….")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CraftError("The data URI of the image is not valid base64.") from error


def _fetch(url: str, limits: Limits, hosts: Collection[str]) -> bytes:
    """The bytes at an address. Redirects are not followed: they could lead to another host."""
    host = (urlsplit(url).hostname or "").lower()
    if host not in hosts:
        allowed = ", ".join(sorted(hosts)) or "none"
        raise CraftError(
            f"The server fetches no image from {host!r} (allowed hosts: {allowed}); send a data URI."
        )
    try:
        content, missing = fetch(url, limits.body, TIMEOUT, redirects=False)
    except DataError as error:
        raise CraftError(
            f"The host {host!r} of the image has a private address, which the server does not use."
        ) from error
    except HTTPError as error:
        raise CraftError(f"The image's host answered with status {error.code}.") from error
    except FAULTS as error:
        raise CraftError(f"The image at {host} cannot be fetched: {type(error).__name__}.") from error
    if len(content) > limits.body:
        raise CraftError(f"The image at {host} has more than {limits.body} bytes.")
    if missing:
        raise CraftError(f"The image at {host} was cut short by {missing} bytes.")
    return content
