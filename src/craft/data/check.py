"""Look at every picture of a data set before training starts: what cannot be used, and what to know."""

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
from craft.data.images import image_bytes, image_bytes_hash, image_key, open_image, orientation
from craft.data.packed import Packed
from craft.data.problems import Problems
from craft.data.sample import Data, Sample

LONG_ANSWER, RARE, IMBALANCE, NEAR, CLOSE = 5, 2, 20, 3, 4.0
"""Words beyond which an answer cannot be exact in 5 tokens; pictures below which a class is rare; ratio of
the largest class to the smallest; near-duplicates differ at most in so many bits of 64, and by so many grey
levels of 255 on average."""

EXAMPLES = 3
"""How many places a finding names."""


@dataclass(frozen=True)
class Finding:
    """Something about a data set that a user should know before training.

    Attributes:
        kind: a word for it ("leakage").
        count: how many samples, pictures or classes it is true of.
        text: a sentence.
        where: some places, as they were declared.
        warning: False for what is handled and only named.
    """

    kind: str
    count: int
    text: str
    where: tuple[str, ...] = ()
    warning: bool = True


@dataclass(frozen=True)
class Look:
    """What one picture is: hash of its file, what it looks like (None: not decoded, or without contrast),
    traits in words, and why it cannot be used ("" where it can)."""

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
    for _, seen in looks(samples, data.name, progress=progress, hashes=False):
        if seen.trouble:
            problems.add(DataError(seen.trouble))
    problems.stop(len(samples))
    return len(samples)


def check_data(data: Data, decode: bool = True, progress: bool = True) -> list[Finding]:
    """Look at every picture and every sample.

    Args:
        data: with all its classes (`whole`), so that nothing goes unseen. Its `hashes` are filled.
        decode: decode pictures; without, files are only read and compared.
        progress: show it.

    Raises:
        DataError: pictures that cannot be used, as `verify_images`.
    """
    samples = distinct(data.all_samples())
    problems, seen = Problems("images"), list[tuple[Sample, Look]]()
    for sample, found in looks(samples, data.name, decode, progress):
        if found.trouble:
            problems.add(DataError(found.trouble))
        seen.append((sample, found))
        if isinstance(sample.image, str | Packed):
            data.hashes[sample.image] = found.sha256
    problems.stop(len(samples))
    return [*_traits(seen), *_copies(data, seen), *_classes(data), *_answers(data)]


def distinct(samples: Sequence[Sample]) -> list[Sample]:
    """One sample for each picture: the first."""
    return list({image_key(sample.image): sample for sample in reversed(samples)}.values())[::-1]


def looks(
    samples: Sequence[Sample], name: str, decode: bool = True, progress: bool = True, hashes: bool = True
) -> Iterator[tuple[Sample, Look]]:
    """Each sample with what its picture is, in order. Pictures are decoded in threads: the decoders of PIL
    let go of the interpreter's lock."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        run = pool.map if decode else map  # reading alone is faster than handing it to a thread
        found = run(lambda sample: _look(sample, decode, hashes), samples)
        shown = track(found, f"checking the images of {name}", len(samples)) if progress else found
        yield from zip(samples, shown, strict=True)
    finally:  # after Ctrl-C or too many mistakes nobody waits for the rest
        pool.shutdown(wait=False, cancel_futures=True)


def _look(sample: Sample, decode: bool, hashes: bool) -> Look:
    itself = isinstance(sample.image, str) and sample.origin == sample.image
    try:
        image = open_image(sample.image, "" if itself else sample.origin) if decode else None
        if not hashes:
            return Look("")
        if not isinstance(sample.image, str | os.PathLike | bytes | Packed):
            return Look(image_bytes_hash(sample.image), None if image is None else _near(image))
        content = image_bytes(sample.image)
        traits = _header(content) if decode else ()
        near = None if image is None else _near(image)
        return Look(hashlib.sha256(content).hexdigest(), near, traits)
    except DataError as error:
        return Look("", trouble=str(error))


def _header(content: bytes) -> tuple[str, ...]:
    """What is unusual about a picture that can be decoded."""
    with Image.open(io.BytesIO(content)) as image:
        told = {
            "animated": image.format != "MPO" and _animated(image),
            "CMYK": image.mode == "CMYK",
            "16-bit": image.mode.startswith("I"),
            "with transparency": image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
            "EXIF-rotated": orientation(image) != 1,
            "tiny": min(image.size) < 8,
        }
    return tuple(name for name, true in told.items() if true)


def _animated(image: Image.Image) -> bool:
    try:
        return getattr(image, "n_frames", 1) > 1
    except Exception:  # a decoder may raise anything on a later frame that is broken; it is not used
        return True


def _near(image: Image.Image) -> tuple[int, bytes] | None:
    """A difference hash of 64 bits (which of 8 x 9 grey cells is brighter than its neighbour), and 16 x 16
    grey cells."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    if np.ptp(grey) < 8:
        return None  # without contrast all pictures look alike
    bits = (grey[:, 1:] > grey[:, :-1]).reshape(-1)
    cells = image.convert("L").resize((16, 16), Image.Resampling.BOX).tobytes()
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), cells


_HANDLED = {
    "animated": "of an animation the first frame is used",
    "CMYK": "CMYK is converted to RGB",
    "16-bit": "16-bit grey is scaled to 8 bits",
    "with transparency": "transparency is dropped, as VILA-U does",
    "EXIF-rotated": "the rotation that EXIF asks for is applied",
}


def _traits(seen: Sequence[tuple[Sample, Look]]) -> Iterator[Finding]:
    places: dict[str, list[str]] = defaultdict(list)
    for sample, found in seen:
        for trait in found.traits:
            places[trait].append(sample.origin)
    for trait, where in places.items():
        if trait == "tiny":
            yield _finding("tiny", where, "pictures have a side of fewer than 8 pixels")
        else:
            yield _finding(trait, where, f"pictures are {trait}: {_HANDLED[trait]}", warning=False)


def _copies(data: Data, seen: Sequence[tuple[Sample, Look]]) -> Iterator[Finding]:
    """Pictures that are in training and test, in two classes, or nearly in both splits."""
    hashes = {image_key(sample.image): found for sample, found in seen}
    splits: dict[str, set[str]] = defaultdict(set)
    labels: dict[str, set[str]] = defaultdict(set)
    first: dict[str, str] = {}
    for sample in data.all_samples():
        found = hashes[image_key(sample.image)]
        splits[found.sha256].add("train" if sample.split == "validation" else sample.split)
        first.setdefault(found.sha256, sample.origin)
        if sample.label is not None:
            labels[found.sha256].add(sample.label)
    both = {digest: None for digest, found in splits.items() if {"train", "test"} <= found}
    if both:
        yield _finding(
            "leakage",
            [first[digest] for digest in both],
            "pictures are in the training and in the test set, byte for byte: the test is easier than it "
            "should be. Remove them from one, or give a split",
        )
    twice = [first[digest] for digest, found in labels.items() if len(found) > 1]
    if data.task == "classification" and twice:
        yield _finding("two classes", twice, "pictures are in two classes, byte for byte. Remove one of each")
    near: dict[str, dict[tuple[int, bytes], str]] = {"train": {}, "test": {}}
    for sample in data.all_samples():
        found = hashes[image_key(sample.image)]
        if found.near is not None and sample.split in near and found.sha256 not in both:
            near[sample.split].setdefault(found.near, sample.origin)
    if alike := _alike(near["test"], near["train"]):
        yield _finding("near-duplicates", alike, "test pictures look almost like a training picture")


def _alike(test: dict[tuple[int, bytes], str], train: dict[tuple[int, bytes], str]) -> list[str]:
    """Where the test pictures were declared that a training picture nearly equals: by hash, then by cells."""
    if not train:
        return []
    hashes = np.array([value for value, _ in train], dtype=np.uint64)
    cells = np.array([np.frombuffer(found, np.uint8) for _, found in train], dtype=np.int16)
    places = []
    for (value, found), origin in test.items():
        same = cells[np.bitwise_count(hashes ^ np.uint64(value)) <= NEAR]
        own = np.frombuffer(found, np.uint8).astype(np.int16)
        if len(same) and (np.abs(same - own).mean(axis=1) <= CLOSE).any():
            places.append(origin)
    return places


def _classes(data: Data) -> Iterator[Finding]:
    counts = Counter(sample.label for sample in data.all_samples() if sample.label is not None)
    if data.task != "classification":
        return
    if rare := [f"{name} ({count})" for name, count in counts.items() if count < RARE]:
        yield _finding(
            "rare classes", rare, "classes have a single picture: it cannot be in training and test"
        )
    most, least = max(counts.values()), min(counts.values())
    if most > IMBALANCE * least:
        ends = [f"{name} ({count})" for name, count in (counts.most_common(1) + counts.most_common()[-1:])]
        yield Finding(
            "imbalance", most, f"the largest class is {most // least} times the smallest", tuple(ends)
        )
    if numbers := [name for name in counts if name.isdigit()]:
        yield _finding("numbered classes", numbers, "classes are called by a number; the LLM needs words")


def _answers(data: Data) -> Iterator[Finding]:
    long = [s.origin for s in data.test if not s.choices and len(s.answer.split()) > LONG_ANSWER]
    if long:
        yield _finding(
            "long answers",
            long,
            f"test answers have more than {LONG_ANSWER} words: a reply of 5 tokens cannot match them",
        )


_ONE = {"pictures are": "picture is", "pictures have": "picture has", "pictures look": "picture looks"}
_ONE |= {"classes have": "class has", "classes are": "class is", "answers have": "answer has"}


def _finding(kind: str, where: Sequence[str], text: str, warning: bool = True) -> Finding:
    if len(where) == 1:
        for several, one in _ONE.items():
            text = text.replace(several, one, 1)
    return Finding(kind, len(where), f"{len(where)} {text}", tuple(where[:EXAMPLES]), warning)
