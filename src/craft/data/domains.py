"""The embedded domains: small sets of real images that come with the package or with a dependency."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from craft.data.captions import class_text
from craft.data.holdout import stratified
from craft.data.raw import Raw
from craft.data.sample import Sample

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


@dataclass(frozen=True)
class Domain:
    """An embedded domain: what `craft data list` shows, and how to read it.

    Attributes:
        name: what `--data` takes.
        domain: what the images are of, in the texts of the contrastive loss.
        classes: the words of its labels, in the order of the original label numbers.
        train, test: how many images.
        read: yields (split, id, image uint8 [H, W], label number).
    """

    name: str
    domain: str
    classes: tuple[str, ...]
    train: int
    test: int
    licence: str
    source: str
    read: Callable[[], Iterator[tuple[str, str, np.ndarray, int]]]

    def load(self) -> Raw:
        """Every sample of the domain, with its fixed split."""
        samples = [
            Sample(id, image, "", "", label=word, split=split, origin=id, text=class_text(self.domain, word))
            for split, id, image, number in self.read()
            for word in (self.classes[number],)
        ]
        return Raw(self.name, "classification", self.domain, samples, self.licence, self.source)


def _apparel() -> Iterator[tuple[str, str, np.ndarray, int]]:
    """The shipped sheets, built by scripts/build_apparel.py; ids carry the index in the original file."""
    from PIL import Image

    folder = files("craft.data").joinpath("apparel")
    for split in ("train", "test"):
        meta = json.loads(folder.joinpath(f"{split}.json").read_text(encoding="utf-8"))
        with folder.joinpath(f"{split}.png").open("rb") as stream, Image.open(stream) as sheet:
            pixels = np.asarray(sheet)
        size, columns = meta["size"], meta["columns"]
        for n, (index, label) in enumerate(zip(meta["indices"], meta["labels"], strict=True)):
            y, x = n // columns * size, n % columns * size
            image = np.ascontiguousarray(pixels[y : y + size, x : x + size])
            yield split, f"apparel/{split}/{index:05d}", image, int(label)


def _digits() -> Iterator[tuple[str, str, np.ndarray, int]]:
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
            read=_apparel,
        ),
        Domain(
            name="digits",
            domain="handwritten digit",
            classes=DIGIT_WORDS,
            train=1797 - DIGITS_TEST,
            test=DIGITS_TEST,
            licence="CC BY 4.0",
            source="Optical Recognition of Handwritten Digits, UCI, 1998, as in scikit-learn: 8 x 8 grey",
            read=_digits,
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
            "task": "classification",
            "licence": domain.licence,
            "source": domain.source,
        }
        for domain in EMBEDDED.values()
    ]
