"""Decode every picture of a data set before training starts."""

import os

from craft.core.errors import DataError
from craft.core.progress import track
from craft.data.images import open_image
from craft.data.sample import Data

_SHOWN = 5


def verify_images(data: Data, progress: bool = True) -> int:
    """Open and decode every image once; return how many distinct images there are.

    Arrays and decoded PIL images are checked too, files and bytes are read in full.

    Raises:
        DataError: some cannot be used; the first five are named with the file and line that declared them.
    """
    distinct = {}
    for sample in data.all_samples():
        source = sample.image
        key = os.fspath(source) if isinstance(source, str | os.PathLike) else id(source)
        distinct.setdefault(key, sample)
    samples = list(distinct.values())
    bad: list[str] = []
    for sample in track(samples, f"checking the images of {data.name}") if progress else samples:
        itself = isinstance(sample.image, str) and sample.origin == sample.image
        try:
            open_image(sample.image, "" if itself else sample.origin)
        except DataError as error:
            bad.append(str(error))
    if len(bad) == 1:
        raise DataError(bad[0])
    if bad:
        more = f" And {len(bad) - _SHOWN} more." if len(bad) > _SHOWN else ""
        raise DataError(f"{len(bad)} of {len(samples)} images cannot be used. {' '.join(bad[:_SHOWN])}{more}")
    return len(samples)
