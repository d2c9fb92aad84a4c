"""Stanford Dogs: 120 breeds of ImageNet."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from craft.data.benchmarks.base import Benchmark
from craft.data.benchmarks.classes import from_copy, labelled
from craft.data.benchmarks.reading import Note, find_below, need_below, read_mat
from craft.data.readers.rows import Row
from craft.data.sample import Sample
from craft.data.spelling import words

DOMAIN = "dog"


def breed(name: str) -> str:
    """The breed in words: "n02085620-Chihuahua" -> "Chihuahua", "toy_terrier" -> "toy terrier"."""
    head, dash, tail = name.partition("-")
    return words(tail if dash and head[:1] == "n" and head[1:].isdigit() else name)


def _original(root: Path, note: Note) -> Iterator[Sample]:
    first = find_below(root, "train_list.mat")
    if first is None:
        return
    images = need_below(root, "Stanford Dogs", "Images", first)
    for split in ("train", "test"):
        path = first if split == "train" else need_below(root, "Stanford Dogs", "test_list.mat", first)
        for number, file in enumerate(np.atleast_1d(read_mat(path)["file_list"]), start=1):
            folder = str(file).split("/")[0]
            yield labelled(
                str(file), str(images / str(file)), breed(folder), DOMAIN, split, f"{path}, row {number}"
            )


def _copy(row: Row, note: Note) -> Iterable[Sample]:
    return from_copy(row, lambda name, origin, note: breed(name), DOMAIN, note)


STANFORD_DOGS = Benchmark(
    name="stanford-dogs",
    title="Stanford Dogs",
    task="classification",
    domain=DOMAIN,
    licence="ImageNet's terms: non-commercial research",
    source="Khosla et al., 2011 (vision.stanford.edu/aditya86/ImageNetDogs)",
    get="images.tar and lists.tar from vision.stanford.edu/aditya86/ImageNetDogs/.",
    layout="Images/<n…-breed>/*.jpg, train_list.mat and test_list.mat",
    sizes={"train": 12000, "test": 8580},
    classes=120,
    original=_original,
    copy=_copy,
    hub=("Donghyun99/Stanford-Dogs",),
    refused={"Alanox/stanford-dogs": "it is a loading script, and CRAFT runs no scripts"},
)
