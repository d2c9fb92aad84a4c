"""Checks of every image of a data set before training: what cannot be used, and what to know."""

import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from craft.core.errors import DataError
from craft.core.progress import track
from craft.data.images import (
    Deep,
    Packed,
    image_bytes,
    image_bytes_hash,
    image_key,
    lazy_image,
    open_image,
    orientation,
)
from craft.data.problems import Problems
from craft.data.sample import Data, Sample, distinct

LONG_ANSWER, RARE, IMBALANCE, NEAR, CLOSE, DARK = 5, 2, 20, 3, 4.0, 16
"""Limits of the findings: an answer of more words cannot be exact in 5 tokens; a class with fewer images is
rare; the largest class may be this many times the smallest; near-duplicates differ in at most this many bits
of 64, and by at most this many grey levels of 255 on average; no value of a dark image reaches this."""

EXAMPLES = 3
"""How many examples a finding names."""


@dataclass(frozen=True)
class Finding:
    """Something about a data set that a user should know before training.

    Attributes:
        kind: a word for it ("leakage").
        count: how many samples, images or classes it concerns.
        text: a sentence.
        where: the origins of some of them.
        warning: False if CRAFT handles it.
    """

    kind: str
    count: int
    text: str
    where: tuple[str, ...] = ()
    warning: bool = True


@dataclass(frozen=True)
class Look:
    """What is known of one image.

    Attributes:
        sha256: hash of its file.
        near: what it looks like (see `_near`); None if it was not decoded, or has no contrast.
        traits: what is unusual about it, in words.
        trouble: why it cannot be used; "" if it can.
    """

    sha256: str
    near: tuple[int, bytes] | None = None
    traits: tuple[str, ...] = ()
    trouble: str = ""


def verify_images(data: Data, progress: bool = True) -> int:
    """Open and decode every image once; return how many distinct images there are.

    Arrays and decoded PIL images are checked too, files and bytes are read in full.

    Raises:
        DataError: some cannot be used; the first five are named with the file and line that declared them.
    """
    samples = distinct(data.all_samples())
    problems = Problems("images")
    for _, look in looks(samples, data.name, progress=progress, hashes=False):
        if look.trouble:
            problems.add(DataError(look.trouble))
    problems.stop(len(samples))
    return len(samples)


def check_data(data: Data, decode: bool = True, progress: bool = True) -> list[Finding]:
    """Check every image and every sample.

    Args:
        data: with all its classes (`whole`), so that nothing is missed. Its `hashes` are filled.
        decode: decode images; otherwise, files are only read and compared.
        progress: show the progress.

    Raises:
        DataError: images that cannot be used, as `verify_images`.
    """
    samples = distinct(data.all_samples())
    problems, results = Problems("images"), list[tuple[Sample, Look]]()
    for sample, look in looks(samples, data.name, decode, progress):
        if look.trouble:
            problems.add(DataError(look.trouble))
        results.append((sample, look))
        if isinstance(sample.image, str | Packed):
            data.hashes[sample.image] = look.sha256
    problems.stop(len(samples))
    return [*_traits(results), *_duplicates(data, results), *_classes(data), *_answers(data)]


def looks(
    samples: Sequence[Sample], name: str, decode: bool = True, progress: bool = True, hashes: bool = True
) -> Iterator[tuple[Sample, Look]]:
    """Each sample with what is known of its image, in order. Images are decoded in threads, because PIL's
    decoders release the interpreter's lock."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        run = pool.map if decode else map  # reading alone is faster without threads
        results = run(lambda sample: _look(sample, decode, hashes), samples)
        shown = track(results, f"checking the images of {name}", len(samples)) if progress else results
        yield from zip(samples, shown, strict=True)
    finally:  # after Ctrl-C or too many mistakes, do not wait for the rest
        pool.shutdown(wait=False, cancel_futures=True)


def _look(sample: Sample, decode: bool, hashes: bool) -> Look:
    source = sample.image.source if isinstance(sample.image, Deep) else sample.image
    origin = "" if isinstance(source, str) and sample.origin == source else sample.origin
    try:
        image = open_image(sample.image, origin) if decode else None
        if not hashes:
            return Look("")
        if not isinstance(sample.image, str | os.PathLike | bytes | Packed):
            return Look(image_bytes_hash(sample.image), None if image is None else _near(image))
        content = image_bytes(sample.image)
        traits = () if image is None else (*_header(content), *_shades(image))
        near = None if image is None else _near(image)
        deep = isinstance(sample.image, Deep)
        digest = image_bytes_hash(sample.image) if deep else hashlib.sha256(content).hexdigest()
        return Look(digest, near, traits)
    except DataError as error:
        return Look("", trouble=str(error))


def _header(content: bytes) -> tuple[str, ...]:
    """What is unusual about an image that can be decoded."""
    with lazy_image(io.BytesIO(content)) as image:
        several = image.format != "MPO" and _animated(image)
        traits = {
            "animated": several and image.format != "TIFF",
            "of several pages": several and image.format == "TIFF",
            "CMYK": image.mode == "CMYK",
            "16-bit": image.mode.startswith("I"),
            "of floating-point values": image.mode == "F",
            "with transparency": image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
            "EXIF-rotated": orientation(image) != 1,
            "tiny": min(image.size) < 8,
        }
    return tuple(name for name, present in traits.items() if present)


def _shades(image: Image.Image) -> tuple[str, ...]:
    """Whether a decoded image shows nothing, or hardly anything."""
    bands = np.asarray(image.getextrema())
    if (bands[:, 0] == bands[:, 1]).all():
        return ("of one colour",)
    return ("almost black",) if bands.max() < DARK else ()


def _animated(image: Image.Image) -> bool:
    try:
        return getattr(image, "n_frames", 1) > 1
    except Exception:  # a decoder may raise anything on a broken later frame, which is not used
        return True


def _near(image: Image.Image) -> tuple[int, bytes] | None:
    """A difference hash of 64 bits (which of 8 x 9 grey cells are brighter than their left neighbour), and
    16 x 16 grey cells."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    if np.ptp(grey) < 8:
        return None  # images without contrast all look alike
    bits = (grey[:, 1:] > grey[:, :-1]).reshape(-1)
    cells = image.convert("L").resize((16, 16), Image.Resampling.BOX).tobytes()
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), cells


_WARNED = {
    "tiny": "images have a side of fewer than 8 pixels",
    "of one colour": "images are of one colour: they show nothing",
    "almost black": f"images are almost black: no value is above {DARK - 1} of 255",
    "of several pages": "images are of several pages, of which the first is used. Save each page as a file",
}
_HANDLED = {
    "animated": "the first frame of an animation is used",
    "CMYK": "CMYK is converted to RGB",
    "16-bit": "16-bit grey is scaled to 8 bits",
    "of floating-point values": "they are scaled to 8 bits",
    "with transparency": "transparency is dropped, as VILA-U does",
    "EXIF-rotated": "the EXIF rotation is applied",
}


def _traits(results: Sequence[tuple[Sample, Look]]) -> Iterator[Finding]:
    origins: dict[str, list[str]] = defaultdict(list)
    for sample, look in results:
        for trait in look.traits:
            origins[trait].append(sample.origin)
    for trait, where in origins.items():
        if trait in _WARNED:
            yield _finding(trait, where, _WARNED[trait])
        else:
            yield _finding(trait, where, f"images are {trait}: {_HANDLED[trait]}", warning=False)


def _duplicates(data: Data, results: Sequence[tuple[Sample, Look]]) -> Iterator[Finding]:
    """Images that are in training and test, in two classes, or nearly the same in both splits."""
    by_image = {image_key(sample.image): look for sample, look in results}
    splits: dict[str, set[str]] = defaultdict(set)
    labels: dict[str, set[str]] = defaultdict(set)
    first: dict[str, str] = {}
    for sample in data.all_samples():
        digest = by_image[image_key(sample.image)].sha256
        splits[digest].add("train" if sample.split == "validation" else sample.split)
        first.setdefault(digest, sample.origin)
        if sample.label is not None:
            labels[digest].add(sample.label)
    in_both = {digest: None for digest, names in splits.items() if {"train", "test"} <= names}
    if in_both:
        yield _finding(
            "leakage",
            [first[digest] for digest in in_both],
            "images are in the training and in the test set, byte for byte: the test is easier than it "
            "should be. Remove them from one, or set the split",
        )
    in_two_classes = [first[digest] for digest, names in labels.items() if len(names) > 1]
    if data.task == "classification" and in_two_classes:
        yield _finding(
            "two classes", in_two_classes, "images are in two classes, byte for byte. Remove one of each"
        )
    near: dict[str, dict[tuple[int, bytes], str]] = {"train": {}, "test": {}}
    for sample in data.all_samples():
        look = by_image[image_key(sample.image)]
        if look.near is not None and sample.split in near and look.sha256 not in in_both:
            near[sample.split].setdefault(look.near, sample.origin)
    if origins := _near_duplicates(near["test"], near["train"]):
        yield _finding("near-duplicates", origins, "test images look almost like a training image")


def _near_duplicates(test: dict[tuple[int, bytes], str], train: dict[tuple[int, bytes], str]) -> list[str]:
    """The origins of test images that nearly equal a training image, by hash and by grey cells."""
    if not train:
        return []
    hashes = np.array([value for value, _ in train], dtype=np.uint64)
    cells = np.array([np.frombuffer(grey, np.uint8) for _, grey in train], dtype=np.int16)
    origins = []
    for (value, grey), origin in test.items():
        candidates = cells[np.bitwise_count(hashes ^ np.uint64(value)) <= NEAR]
        difference = np.abs(candidates - np.frombuffer(grey, np.uint8).astype(np.int16)).mean(axis=1)
        if (difference <= CLOSE).any():
            origins.append(origin)
    return origins


def _classes(data: Data) -> Iterator[Finding]:
    counts = Counter(sample.label for sample in data.all_samples() if sample.label is not None)
    if data.task != "classification":
        return
    if rare := [f"{name} ({count})" for name, count in counts.items() if count < RARE]:
        yield _finding("rare classes", rare, "classes have a single image: it cannot be in training and test")
    most, least = max(counts.values()), min(counts.values())
    if most > IMBALANCE * least:
        ends = [f"{name} ({count})" for name, count in (counts.most_common(1) + counts.most_common()[-1:])]
        yield Finding(
            "imbalance", most, f"the largest class is {most // least} times the smallest", tuple(ends)
        )
    if numbers := [name for name in counts if name.isdigit()]:
        yield _finding("numbered classes", numbers, "classes are named by a number; the LLM needs words")


def _answers(data: Data) -> Iterator[Finding]:
    long = [s.origin for s in data.test if not s.choices and len(s.answer.split()) > LONG_ANSWER]
    if long:
        yield _finding(
            "long answers",
            long,
            f"test answers have more than {LONG_ANSWER} words: a reply of 5 tokens cannot match them",
        )


_ONE = {"images are": "image is", "images have": "image has", "images look": "image looks"}
_ONE |= {"classes have": "class has", "classes are": "class is", "answers have": "answer has"}


def _finding(kind: str, where: Sequence[str], text: str, warning: bool = True) -> Finding:
    if len(where) == 1:
        for several, one in _ONE.items():
            text = text.replace(several, one, 1)
    return Finding(kind, len(where), f"{len(where)} {text}", tuple(where[:EXAMPLES]), warning)
