"""The catalogue of embedded domains, and the images that come as PNG sheets (all but `scenes`)."""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeAlias

import numpy as np

from craft.data.domains.scenes import NUMBERS, draw_scenes, scene_words
from craft.data.images import lazy_image
from craft.data.sample import Raw, Task, labelled

APPAREL_WORDS = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""The word for each Fashion-MNIST label, 0 to 9."""

DIGIT_WORDS = NUMBERS
"""The word for each digit."""

Picture: TypeAlias = tuple[str, str, np.ndarray, int]
"""Split, id, image uint8 `[H, W]`, label number."""


@dataclass(frozen=True)
class Domain:
    """An embedded domain: what `craft data list` shows, and how to read it.

    Attributes:
        name: what `--data` takes.
        domain: what the images are of, in the texts of the contrastive loss.
        classes: the words for its labels, in the order of the original label numbers.
        train, test: the number of images.
        licence, source: of the images.
        pictures: reads its images; None for those that are drawn by `draw_scenes`.
        task: "classification", or "vqa" if each image comes with its own question.
    """

    name: str
    domain: str
    classes: tuple[str, ...]
    train: int
    test: int
    licence: str
    source: str
    pictures: Callable[[], Iterator[Picture]] | None = None
    task: Task = "classification"

    def load(self) -> Raw:
        """Every sample of the domain, with its fixed split."""
        raw = Raw(self.name, self.task, self.domain, licence=self.licence, source=self.source)
        if self.pictures is not None:
            raw.samples = [
                labelled(id, image, self.classes[number], split)
                for split, id, image, number in self.pictures()
            ]
        else:  # training scenes are drawn again once the held-out things are known
            raw.samples = draw_scenes(self.train) + draw_scenes(self.test, split="test")
            raw.classes = self.classes
            raw.draw = lambda unseen: draw_scenes(self.train, without=unseen)
        return raw


def _apparel() -> Iterator[Picture]:
    """From scripts/build_apparel.py; ids contain the index in the original file."""
    for split in ("train", "test"):
        meta = _meta(f"apparel/{split}.json")
        images = _sheet(f"apparel/{split}.png", meta)
        for index, label, image in zip(meta["indices"], meta["labels"], images, strict=False):
            yield split, f"apparel/{split}/{index:05d}", image, int(label)


def _digits() -> Iterator[Picture]:
    """From scripts/build_digits.py; white on black, in the original order."""
    meta = _meta("digits/digits.json")
    images, test = _sheet("digits/digits.png", meta), set(meta["test"])
    for index, (label, image) in enumerate(zip(meta["labels"], images, strict=False)):
        yield "test" if index in test else "train", f"digits/{index:04d}", image, int(label)


def _sketch() -> Iterator[Picture]:
    """From scripts/build_openmoji.py; ids contain OpenMoji's hexcode."""
    meta = _meta("sketch/classes.json")
    for split, count in meta["renderings"].items():
        images = _sheet(f"sketch/{split}.png", meta)
        for number, emoji in enumerate(meta["classes"]):
            for rendering in range(count):
                yield split, f"sketch/{split}/{emoji['hexcode']}/{rendering}", next(images), number


@functools.cache
def _meta(name: str) -> dict[str, Any]:
    """The JSON file of a sheet."""
    return json.loads(files("craft.data.domains").joinpath(name).read_text(encoding="utf-8"))


def _sheet(name: str, meta: dict[str, Any]) -> Iterator[np.ndarray]:
    """The grey images uint8 `[size, size]` of a PNG sheet, row by row."""
    size, columns = meta["size"], meta["columns"]
    with files("craft.data.domains").joinpath(name).open("rb") as stream, lazy_image(stream) as sheet:
        pixels = np.asarray(sheet.convert("L"))
    for y in range(0, len(pixels), size):
        for x in range(0, columns * size, size):
            yield np.ascontiguousarray(pixels[y : y + size, x : x + size])


_RENDERINGS: dict[str, int] = _meta("sketch/classes.json")["renderings"]

SKETCH_WORDS: tuple[str, ...] = tuple(emoji["name"] for emoji in _meta("sketch/classes.json")["classes"])
"""The word for each drawing of `sketch`: the emoji's name."""

EMBEDDED: dict[str, Domain] = {
    domain.name: domain
    for domain in (
        Domain(
            name="apparel",
            domain="fashion item",
            classes=APPAREL_WORDS,
            train=3000,
            test=1000,
            licence="MIT",
            source="Fashion-MNIST, Zalando SE, 2017: a fixed subset, 28 x 28 grey",
            pictures=_apparel,
        ),
        Domain(
            name="digits",
            domain="handwritten digit",
            classes=DIGIT_WORDS,
            train=1000,
            test=797,
            licence="CC BY 4.0",
            source="Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, UCI, 1998: 8 x 8 grey",
            pictures=_digits,
        ),
        Domain(
            name="sketch",
            domain="line drawing",
            classes=SKETCH_WORDS,
            train=len(SKETCH_WORDS) * _RENDERINGS["train"],
            test=len(SKETCH_WORDS) * _RENDERINGS["test"],
            licence="CC BY-SA 4.0",
            source="OpenMoji 17, the OpenMoji contributors: black drawings, several renderings each",
            pictures=_sketch,
        ),
        Domain(
            name="scenes",
            domain="scene",
            classes=scene_words(),
            train=1200,
            test=600,
            licence="CC BY-SA 4.0",
            source="drawn by program from OpenMoji 17's colour drawings and Computer Modern",
            task="vqa",
        ),
    )
}
"""Every embedded domain by name."""


def catalogue() -> list[dict[str, str | int]]:
    """One row per embedded domain: name, images (train + test), classes, task, licence, source."""
    shared = ("name", "train", "test", "task", "licence", "source")
    return [
        {key: getattr(domain, key) for key in shared}
        | {"images": domain.train + domain.test, "classes": len(domain.classes)}
        for domain in EMBEDDED.values()
    ]
