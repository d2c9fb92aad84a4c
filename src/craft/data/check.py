"""Checks of every image of a data set before training: what cannot be used, and what to know."""

import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from craft.core.errors import DataError
from craft.core.files import user_path
from craft.core.progress import track
from craft.data.domains.embedded import EMBEDDED
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
"""Limits of the findings: an answer of more tokens cannot be exact in a reply of 5 (§4.1); a class with fewer
images is rare; the largest class may be this many times the smallest; near-duplicates differ in at most this
many bits of 64, and by at most this many grey levels of 255 on average; no value of a dark image reaches
this."""

EXAMPLES = 3
"""How many examples a finding names."""

Detail = Literal["none", "pixels", "all"]
"""What `looks` finds out: only whether an image can be decoded, what it looks like, or everything."""

Overlap = Literal["refuse", "drop", "train"]
"""What happens to training images that stand in the test split too: an error, left out, or trained on."""


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
        pixels: hash of what is decoded from it; that of the file if it was not decoded.
        near: what it looks like (see `_near`); None if it was not decoded, or has no contrast.
        traits: what is unusual about it, in words.
        trouble: why it cannot be used; "" if it can.
    """

    sha256: str
    pixels: str = ""
    near: tuple[int, bytes] | None = None
    traits: tuple[str, ...] = ()
    trouble: str = ""


def verify_images(data: Data, progress: bool = True, overlap: Overlap = "train") -> int:
    """Open and decode every image once; return how many distinct images there are.

    Arrays and decoded PIL images are checked too, files and bytes are read in full.

    Args:
        data: the data set.
        progress: show the progress.
        overlap: "refuse" images of training or validation that stand in the test split too: with the same
            pixels, near-duplicates, or of the same group. Embedded domains are exempt. Other values do not
            look.

    Raises:
        DataError: some cannot be used, the first five are named with the file and line that declared them; or
            training images stand in the test split.
    """
    samples = distinct([*data.all_samples(), *(data.tested if overlap == "refuse" else ())])
    compares = overlap == "refuse" and bool(data.tested or data.test) and not is_embedded(data)
    results = _usable(samples, data.name, progress, "pixels" if compares else "none")
    if pairs := _overlap(data, results) if compares else []:
        raise DataError(_refusal(data.name, pairs))
    return len(distinct(data.all_samples()))


def settle_overlap(data: Data, overlap: Overlap, progress: bool = True) -> Data:
    """The data, with "drop" without those training and validation images that stand in the test split too.

    Raises:
        DataError: images that cannot be used, or training images in the test split, as `verify_images`.
    """
    if overlap == "train" or is_embedded(data):
        return data
    if overlap == "refuse":
        verify_images(data, progress, overlap)
        return data
    samples = distinct([*data.all_samples(), *data.tested])
    results = _usable(samples, data.name, progress, "pixels")
    out = {image_key(train.image) for train, _, _ in _overlap(data, results)}
    if not out:
        return data
    train, validation = (
        [sample for sample in part if image_key(sample.image) not in out]
        for part in (data.train, data.validation)
    )
    note = f"left out of training: {len(out)} images that stand in the test split too"
    return replace(data, train=train, validation=validation, notes=[*data.notes, note])


def _usable(
    samples: Sequence[Sample], name: str, progress: bool, detail: Detail, decode: bool = True
) -> list[tuple[Sample, Look]]:
    """The results of `looks`.

    Raises:
        DataError: images cannot be used.
    """
    problems, results = Problems("images"), list[tuple[Sample, Look]]()
    for sample, look in looks(samples, name, decode, progress, detail):
        if look.trouble:
            problems.add(DataError(look.trouble))
        results.append((sample, look))
    problems.stop(len(samples))
    return results


def is_embedded(data: Data) -> bool:
    """Whether this is an embedded domain, whose splits are settled (docs/data.md names the
    near-duplicate that apparel has)."""
    return data.name in EMBEDDED and bool(data.licence)


def _refusal(name: str, pairs: Sequence[tuple[Sample, str, str]]) -> str:
    """What is wrong with images that stand in training and test, and the ways out."""
    kinds = Counter(kind for _, kind, _ in pairs)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    examples = "; ".join(f"{train.origin} and {test}" for train, _, test in pairs[:EXAMPLES])
    more = "; …" if len(pairs) > EXAMPLES else ""
    return (
        f"training images of {name} stand in the test split too ({counts}): {examples}{more}. Accuracy on "
        "such a test is not that on new images. Remove them from one of the splits, leave them out of "
        "training with --overlap drop, or train on them all the same with --overlap train."
    )


def _overlap(data: Data, results: Sequence[tuple[Sample, Look]]) -> list[tuple[Sample, str, str]]:
    """(sample, kind, origin of the test image) of each image of training or validation that stands in the
    test split too."""
    by_image = {image_key(sample.image): look for sample, look in results}
    test, groups, shapes = dict[str, str](), dict[str, str](), dict[tuple[int, bytes], str]()
    for sample in [*data.tested, *data.test]:
        look = by_image[image_key(sample.image)]
        test.setdefault(look.pixels, sample.origin)
        if sample.group:
            groups.setdefault(sample.group, sample.origin)
        if look.near is not None:
            shapes.setdefault(look.near, sample.origin)
    pairs = list[tuple[Sample, str, str]]()
    others = list[tuple[Sample, tuple[int, bytes]]]()
    for sample in distinct([*data.train, *data.validation]):
        look = by_image[image_key(sample.image)]
        if look.pixels in test:
            pairs.append((sample, "with the same pixels", test[look.pixels]))
        elif sample.group in groups:
            pairs.append((sample, "of the same group", groups[sample.group]))
        elif look.near is not None:
            others.append((sample, look.near))
    matches = _nearest([near for _, near in others], shapes)
    pairs += [
        (other[0], "nearly the same", origin) for other, origin in zip(others, matches, strict=True) if origin
    ]
    return pairs


def check_data(
    data: Data,
    decode: bool = True,
    progress: bool = True,
    *,
    tokens: Callable[[str], int] | None = None,
    letters: bool = False,
) -> list[Finding]:
    """Check every image and every sample.

    Args:
        data: with all its classes (`whole`), so that nothing is missed. Its `hashes` are filled.
        decode: decode images; otherwise, files are only read and compared.
        progress: show the progress.
        tokens: counts the tokens of an answer; None counts its words, of which each has at least one token.
        letters: options are answered by their letter.

    Raises:
        DataError: images that cannot be used, as `verify_images`.
    """
    samples = distinct(data.all_samples())
    results = _usable(samples, data.name, progress, "all", decode)
    data.hashes |= {s.image: look.sha256 for s, look in results if isinstance(s.image, str | Packed)}
    caveats = [Finding("incomplete", 1, caveat) for caveat in data.caveats]
    return [
        *caveats,
        *_traits(results),
        *_duplicates(data, results),
        *_classes(data),
        *_answers(data, tokens, letters),
    ]


def answer_tokens(model: str) -> Callable[[str], int]:
    """A function that counts the tokens of an answer in a reply of a model. It reads only `tokenizer.json`.

    Args:
        model: a shipped model, or the folder of a model or LLM.

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    from tokenizers import Tokenizer

    shipped = Path(__file__).parents[1] / "shipped" / model
    folder = shipped if (shipped / "craft.json").is_file() else user_path(model)
    path = next((p for p in (folder / "llm/tokenizer.json", folder / "tokenizer.json") if p.is_file()), None)
    if path is None:
        raise DataError(
            f"{model} has no tokenizer.json, by which answers are measured; give a shipped model, such as "
            "craft-tiny/qwen2, or the folder of one that has it (--model)."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path} is damaged or not a tokenizer ({error}); copy it again.") from error
    return lambda text: len(tokenizer.encode(f" {text}", add_special_tokens=False).ids)


def looks(
    samples: Sequence[Sample], name: str, decode: bool = True, progress: bool = True, detail: Detail = "all"
) -> Iterator[tuple[Sample, Look]]:
    """Each sample with what is known of its image, in order. Images are decoded in threads, because PIL's
    decoders release the interpreter's lock.

    Args:
        samples: one for each image.
        name: of the data set.
        decode: decode images.
        progress: show the progress.
        detail: what to find out.
    """
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        run = pool.map if decode else map  # reading alone is faster without threads
        results = run(lambda sample: _look(sample, decode, detail), samples)
        shown = track(results, f"checking the images of {name}", len(samples)) if progress else results
        yield from zip(samples, shown, strict=True)
    finally:  # after Ctrl-C or too many mistakes, do not wait for the rest
        pool.shutdown(wait=False, cancel_futures=True)


def _look(sample: Sample, decode: bool, detail: Detail) -> Look:
    source = sample.image.source if isinstance(sample.image, Deep) else sample.image
    origin = "" if isinstance(source, str) and sample.origin == source else sample.origin
    try:
        image = open_image(sample.image, origin) if decode else None
        if detail == "none":
            return Look("")
        pixels = "" if image is None else _pixels(image)
        near = None if image is None else _near(image)
        if detail == "pixels":
            return Look("", pixels, near)
        if not isinstance(sample.image, str | os.PathLike | bytes | Packed):
            digest = image_bytes_hash(sample.image)
            return Look(digest, pixels or digest, near)
        content = image_bytes(sample.image)
        traits = () if image is None else (*_header(content), *_shades(image))
        deep = isinstance(sample.image, Deep)
        digest = image_bytes_hash(sample.image) if deep else hashlib.sha256(content).hexdigest()
        return Look(digest, pixels or digest, near, traits)
    except DataError as error:
        return Look("", trouble=str(error))


def _pixels(image: Image.Image) -> str:
    """A hash of the size and the pixels of a decoded image."""
    digest = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()


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
    image = image.convert("L")
    grey = np.asarray(image.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    if np.ptp(grey) < 8:
        return None  # images without contrast all look alike
    bits = (grey[:, 1:] > grey[:, :-1]).reshape(-1)
    cells = image.resize((16, 16), Image.Resampling.BOX).tobytes()
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
        digest = by_image[image_key(sample.image)].pixels
        splits[digest].add("train" if sample.split == "validation" else sample.split)
        first.setdefault(digest, sample.origin)
        if sample.label is not None:
            labels[digest].add(sample.label)
    in_both = {digest: None for digest, names in splits.items() if {"train", "test"} <= names}
    if in_both:
        yield _finding(
            "leakage",
            [first[digest] for digest in in_both],
            "images are in the training and in the test set with the same pixels: the test is easier than it "
            "should be. Remove them from one, or set the split",
        )
    groups: dict[str, set[bool]] = defaultdict(set)
    for sample in data.all_samples():
        groups[sample.group].add(sample.split == "test")
    if divided := [group for group, sides in groups.items() if group and len(sides) > 1]:
        yield _finding("divided groups", divided, "groups are in the training and in the test set")
    in_two_classes = [first[digest] for digest, names in labels.items() if len(names) > 1]
    if data.task == "classification" and in_two_classes:
        yield _finding(
            "two classes", in_two_classes, "images are in two classes, pixel for pixel. Remove one of each"
        )
    near: dict[str, dict[tuple[int, bytes], str]] = {"train": {}, "test": {}}
    for sample in data.all_samples():
        look = by_image[image_key(sample.image)]
        if look.near is not None and look.pixels not in in_both:
            near["test" if sample.split == "test" else "train"].setdefault(look.near, sample.origin)
    matches = _nearest(list(near["test"]), near["train"])
    if origins := [at for at, match in zip(near["test"].values(), matches, strict=True) if match]:
        yield _finding("near-duplicates", origins, "test images look almost like a training image")


def _nearest(
    images: Sequence[tuple[int, bytes]], others: Mapping[tuple[int, bytes], str]
) -> list[str | None]:
    """For each image the value of another one that it nearly equals, by hash and by grey cells, or None."""
    if not others:
        return [None] * len(images)
    values = list(others.values())
    hashes = np.array([value for value, _ in others], dtype=np.uint64)
    cells = np.array([np.frombuffer(grey, np.uint8) for _, grey in others], dtype=np.int16)
    matches: list[str | None] = []
    for value, grey in images:
        candidates = np.flatnonzero(np.bitwise_count(hashes ^ np.uint64(value)) <= NEAR)
        difference = np.abs(cells[candidates] - np.frombuffer(grey, np.uint8).astype(np.int16)).mean(axis=1)
        close = candidates[difference <= CLOSE]
        matches.append(values[close[0]] if len(close) else None)
    return matches


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


def _answers(data: Data, tokens: Callable[[str], int] | None, letters: bool) -> Iterator[Finding]:
    """Answers that an exact match cannot reach: class names and texts."""
    unit, count = ("tokens", tokens) if tokens else ("words", lambda text: len(text.split()))
    written = [s for s in data.test if not letters or (s.answer and not s.choices)]
    lengths = {answer: count(answer) for answer in {sample.concept for sample in written}}
    long = [sample for sample in written if lengths[sample.concept] > LONG_ANSWER]
    if not long:
        return
    names = list(dict.fromkeys(f"{s.concept!r} ({lengths[s.concept]} {unit})" for s in long))
    remedy = "ask for letters (--answer-with letter), or " if not letters and len(lengths) > 1 else ""
    text = (
        f"{100 * len(long) / len(data.test):.0f} % of the test answers ({len(long)} of {len(data.test)}) "
        f"cannot be an exact match, because a reply has {LONG_ANSWER} tokens: {', '.join(names[:EXAMPLES])}; "
        f"{remedy}allow longer replies (`craft eval --max-new-tokens {max(lengths.values())}`)"
    )
    yield Finding("long answers", len(long), text, tuple(sample.origin for sample in long[:EXAMPLES]))


_ONE = {"images are": "image is", "images have": "image has", "images look": "image looks"}
_ONE |= {"classes have": "class has", "classes are": "class is"}


def _finding(kind: str, where: Sequence[str], text: str, warning: bool = True) -> Finding:
    if len(where) == 1:
        for several, one in _ONE.items():
            text = text.replace(several, one, 1)
    return Finding(kind, len(where), f"{len(where)} {text}", tuple(where[:EXAMPLES]), warning)
