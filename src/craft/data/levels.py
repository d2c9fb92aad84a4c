"""Images of more than 8 bits: one white level for a whole data set, so that brightness stays comparable.

10-, 12- and 14-bit values in 16-bit files are common in medicine and microscopy. Scaled as 16 bits they would
be almost black; scaled image by image, a dark image would look like a bright one.
"""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from PIL import Image

from craft.core.errors import DataError
from craft.data.images import Deep, deep_values, is_deep, lazy_image, range_of, white_for
from craft.data.sample import Raw, distinct

LOOKED_AT = 64
"""How many of its images settle the white level of a data set. A brighter one later is an error."""

_EIGHT_BITS = frozenset({".jpg", ".jpeg", ".jfif", ".jpe", ".pjpeg", ".pjp", ".webp", ".gif", ".bmp"})
"""Endings of files that need no look: their formats have 8 bits."""

_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
"""The first bytes of TIFF and JPEG 2000."""


def with_white(raw: Raw, white_level: float | None) -> Raw:
    """The set with this white level; None keeps its own.

    Raises:
        DataError: it is below 1.
    """
    if white_level is None:
        return raw
    if not white_level >= 1:
        raise DataError(f"--white-level must be 1 or more (4095 for 12 bits), not {white_level:g}.")
    return replace(raw, white_level=white_level)


def levelled(raw: Raw) -> Raw:
    """The set with each image of more than 8 bits as a `Deep` with the white level of the whole set.

    The level is `raw.white_level`, or the smallest usual one (8, 10, 12, 14, 16 bits; 1 for floats in 0..1)
    that holds the values of the images looked at. A note says which. Sets that were drawn stay as they are.

    Raises:
        DataError: values below 0; integers and floats in one set; 16-bit colour that uses a few bits only.
    """
    if raw.levelled or raw.draw is not None:
        return raw
    deep, colour = _deep_images(raw)
    if colour:
        _check_colour(colour, raw.white_level)
    if not deep:
        return replace(raw, levelled=True)
    clip = raw.white_level is not None
    white, reason = (raw.white_level, "--white-level") if raw.white_level is not None else _white(deep)
    note = f"{len(deep)} images have more than 8 bits; {white:g} is white in all of them ({reason})"
    samples = [
        replace(sample, image=Deep(sample.image, white, clip))
        if isinstance(sample.image, str | bytes) and sample.image in deep
        else sample
        for sample in raw.samples
    ]
    return replace(raw, samples=samples, levelled=True, notes=[*raw.notes, note])


def _deep_images(raw: Raw) -> tuple[dict[str | bytes, bool], list[str | bytes]]:
    """The sources of the images with grey of more than 8 bits (True: of floats), and of those with 16-bit
    colour."""
    deep, colour = dict[str | bytes, bool](), list[str | bytes]()
    # Images inside larger files are not opened only to look.
    files = [sample for sample in distinct(raw.samples) if isinstance(sample.image, str | bytes)]
    for source in (sample.image for sample in sorted(files, key=lambda sample: sample.id)):
        assert isinstance(source, str | bytes)
        try:
            if _may_be_deep(source):
                with _opened(source) as image:
                    if is_deep(image):
                        deep[source] = image.mode == "F"
                    elif ";16" in str(getattr(image, "tile", "")):
                        colour.append(source)
        except Exception:  # a decoder may raise anything; `verify_images` names what cannot be opened
            continue
    return deep, colour


def _may_be_deep(source: str | bytes) -> bool:
    """Whether the first bytes are those of a PNG of 16 bits, a TIFF or a JPEG 2000 file."""
    if isinstance(source, bytes):
        head = source[:26]
    elif os.path.splitext(source)[1].lower() in _EIGHT_BITS:
        return False
    else:
        with open(source, "rb", buffering=0) as file:
            head = file.read(26)
    is_png = head.startswith(b"\x89PNG\r\n\x1a\n")
    return head[24:25] == b"\x10" if is_png else head.startswith(_STARTS)


def _opened(source: str | bytes) -> Image.Image:
    return lazy_image(source if isinstance(source, str) else io.BytesIO(source))


def _looked_at(sources: Sequence[str | bytes]) -> list[str | bytes]:
    """At most `LOOKED_AT` of the images, evenly spaced."""
    step = max(1, -(-len(sources) // LOOKED_AT))
    return list(sources[::step])


def _name(source: str | bytes) -> str:
    return source if isinstance(source, str) else "an image in a row"


def _white(deep: Mapping[str | bytes, bool]) -> tuple[float, str]:
    """The white level of these images (which are of floats if True), and how it came about.

    Raises:
        DataError: values below 0; or integers and floats.
    """
    kinds = {floating: _name(source) for source, floating in [*deep.items()][::-1]}
    if len(kinds) > 1:
        raise DataError(
            f"the data has grey images of integers ({kinds[False]}) and of floats ({kinds[True]}), so no "
            "white level fits both. Convert one kind, or say which value is white: `craft data "
            "prepare DATA --out DIR --white-level VALUE`, and use DIR as the data."
        )
    largest = 0.0
    for source in _looked_at(list(deep)):
        with _opened(source) as image:
            try:
                image.load()
            except Exception:  # a decoder may raise anything; `verify_images` names what cannot be decoded
                continue
            largest = max(largest, range_of(image, deep_values(image, f"the image {_name(source)}")))
        if image.mode.startswith("I;16") and largest > 16383:
            break  # no image of this mode can need more
    white = white_for(largest, True in kinds)
    return white, f"values up to {largest:g}; `craft data prepare --white-level` says otherwise"


def _check_colour(colour: Sequence[str | bytes], white_level: float | None) -> None:
    """Refuse 16-bit colour of which the upper bits, which are all that Pillow keeps, say nothing.

    Raises:
        DataError: no value of the images looked at is above a quarter of the range.
    """
    brightest = 0
    for source in _looked_at(colour):
        try:
            with _opened(source) as image:
                bands = image.convert("RGB").getextrema()
        except Exception:  # a decoder may raise anything; `verify_images` names what cannot be decoded
            continue
        brightest = max(brightest, *(int(high) for _, high in bands))  # type: ignore[misc]
        if brightest > 63:
            return
    if white_level != 65535:
        bits = 8 + brightest.bit_length()
        raise DataError(
            f"{len(colour)} images are 16-bit colour whose values need {bits} bits only "
            f"({_name(colour[0])}): they would be almost black. Scale them to 8 bits (ImageMagick: "
            f"`magick mogrify -level 0,{2**bits - 1} -depth 8 FILES`). If they are as dark as that: "
            "`craft data prepare DATA --out DIR --white-level 65535`, and use DIR as the data."
        )
