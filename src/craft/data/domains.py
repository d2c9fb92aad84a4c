"""The embedded domains: small sets of images that come with the package or with a dependency."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeAlias

import numpy as np

from craft.data.captions import class_text
from craft.data.holdout import stratified
from craft.data.raw import Raw
from craft.data.sample import Sample, Task
from craft.data.scenes import draw_scenes, scene_words

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

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The word for each digit."""

DIGITS_TEST = 797
"""How many of the 1797 digits are for testing."""


Picture: TypeAlias = tuple[str, str, np.ndarray, int]
"""Split, id, image uint8 [H, W], label number."""


@dataclass(frozen=True)
class Domain:
    """An embedded domain: what `craft data list` shows, and how to read it.

    Attributes:
        name: what `--data` takes.
        domain: what the images are of, in the texts of the contrastive loss.
        classes: the words of its labels, in the order of the original label numbers.
        train, test: how many images.
        read: makes its samples.
        task: "classification", or "vqa" where each picture comes with a question of its own.
    """

    name: str
    domain: str
    classes: tuple[str, ...]
    train: int
    test: int
    licence: str
    source: str
    read: Callable[["Domain"], Raw]
    task: Task = "classification"

    def load(self) -> Raw:
        """Every sample of the domain, with its fixed split."""
        return self.read(self)


def _labelled(pictures: Callable[[], Iterator[Picture]]) -> Callable[[Domain], Raw]:
    """Labelled pictures as samples that are still to be made questions of."""

    def read(domain: Domain) -> Raw:
        samples = [
            Sample(
                id, image, "", "", label=word, split=split, origin=id, text=class_text(domain.domain, word)
            )
            for split, id, image, number in pictures()
            for word in (domain.classes[number],)
        ]
        return Raw(domain.name, domain.task, domain.domain, samples, domain.licence, domain.source)

    return read


def _scenes(domain: Domain) -> Raw:
    """Scenes of all things; training scenes are drawn again once it is settled which things are held out."""
    return Raw(
        domain.name,
        domain.task,
        domain.domain,
        draw_scenes(domain.train) + draw_scenes(domain.test, split="test"),
        domain.licence,
        domain.source,
        classes=domain.classes,
        draw=lambda unseen: draw_scenes(domain.train, without=unseen),
    )


def _apparel() -> Iterator[Picture]:
    """The shipped sheets, built by scripts/build_apparel.py; ids carry the index in the original file."""
    folder = files("craft.data").joinpath("apparel")
    for split in ("train", "test"):
        meta = json.loads(folder.joinpath(f"{split}.json").read_text(encoding="utf-8"))
        images = _sheet("apparel", split, meta["size"], meta["columns"])
        for index, label, image in zip(meta["indices"], meta["labels"], images, strict=False):
            yield split, f"apparel/{split}/{index:05d}", image, int(label)


def _about_sketch() -> dict[str, Any]:
    return json.loads(files("craft.data").joinpath("sketch/classes.json").read_text(encoding="utf-8"))


def _sketch() -> Iterator[Picture]:
    """The shipped sheets, built by scripts/build_openmoji.py; ids carry OpenMoji's hexcode."""
    about = _about_sketch()
    for split, count in about["renderings"].items():
        images = _sheet("sketch", split, about["size"], about["columns"])
        for number, known in enumerate(about["classes"]):
            for rendering in range(count):
                yield split, f"sketch/{split}/{known['hexcode']}/{rendering}", next(images), number


def _sheet(domain: str, split: str, size: int, columns: int) -> Iterator[np.ndarray]:
    """The grey pictures uint8 [size, size] of a sheet, row by row."""
    from PIL import Image

    with (
        files("craft.data").joinpath(f"{domain}/{split}.png").open("rb") as stream,
        Image.open(stream) as sheet,
    ):
        pixels = np.asarray(sheet.convert("L"))
    for y in range(0, len(pixels), size):
        for x in range(0, columns * size, size):
            yield np.ascontiguousarray(pixels[y : y + size, x : x + size])


def _digits() -> Iterator[Picture]:
    """scikit-learn's 1797 digits, 8 x 8, white on black, 0..16 scaled to 0..255; a fixed stratified split."""
    from sklearn.datasets import load_digits

    values, targets = load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(values).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    ids = [f"digits/{n:04d}" for n in range(len(pixels))]
    numbers = dict(zip(ids, np.asarray(targets).tolist(), strict=True))
    _, test = stratified(
        ids, DIGITS_TEST, identity=str, group=lambda id: str(numbers[id]), seed=0, purpose="digits test"
    )
    in_test = set(test)
    for id, image in zip(ids, pixels, strict=True):
        yield "test" if id in in_test else "train", id, image, numbers[id]


_RENDERINGS: dict[str, int] = _about_sketch()["renderings"]

SKETCH_WORDS: tuple[str, ...] = tuple(known["name"] for known in _about_sketch()["classes"])
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
            read=_labelled(_apparel),
        ),
        Domain(
            name="digits",
            domain="handwritten digit",
            classes=DIGIT_WORDS,
            train=1797 - DIGITS_TEST,
            test=DIGITS_TEST,
            licence="CC BY 4.0",
            source="Optical Recognition of Handwritten Digits, UCI, 1998, as in scikit-learn: 8 x 8 grey",
            read=_labelled(_digits),
        ),
        Domain(
            name="sketch",
            domain="line drawing",
            classes=SKETCH_WORDS,
            train=len(SKETCH_WORDS) * _RENDERINGS["train"],
            test=len(SKETCH_WORDS) * _RENDERINGS["test"],
            licence="CC BY-SA 4.0",
            source="OpenMoji 17, the OpenMoji contributors: black drawings, several renderings each",
            read=_labelled(_sketch),
        ),
        Domain(
            name="scenes",
            domain="scene",
            classes=scene_words(),
            train=1200,
            test=600,
            licence="CC BY-SA 4.0",
            source="drawn by program from OpenMoji 17's colour drawings and Computer Modern",
            read=_scenes,
            task="vqa",
        ),
    )
}
"""Every embedded domain by name."""


def catalogue() -> list[dict[str, str | int]]:
    """One row per embedded domain: name, images (train + test), classes, task, licence, source."""
    return [
        {
            "name": domain.name,
            "train": domain.train,
            "test": domain.test,
            "images": domain.train + domain.test,
            "classes": len(domain.classes),
            "task": domain.task,
            "licence": domain.licence,
            "source": domain.source,
        }
        for domain in EMBEDDED.values()
    ]
