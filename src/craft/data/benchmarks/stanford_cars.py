"""Stanford Cars: 196 models, with make and year."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from craft.core.errors import DataError
from craft.data.benchmarks.base import Benchmark
from craft.data.benchmarks.classes import from_copy, labelled
from craft.data.benchmarks.reading import Note, find_below, need_below, read_mat
from craft.data.readers.rows import Row
from craft.data.sample import Sample
from craft.data.spelling import words

DOMAIN = "car"
ANNOTATIONS = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
"""The list of each split. `devkit/cars_test_annos.mat` does not serve: it has no classes."""


def _original(root: Path, note: Note) -> Iterator[Sample]:
    meta = find_below(root, "cars_meta.mat")
    if meta is None:
        return
    names = [words(str(name)) for name in np.atleast_1d(read_mat(meta)["class_names"])]
    for split, name in ANNOTATIONS.items():
        path = need_below(root, "Stanford Cars", name, meta)
        outer = need_below(root, "Stanford Cars", f"cars_{split}", meta)
        folder = outer / outer.name if (outer / outer.name).is_dir() else outer  # Kaggle's zip nests them
        for number, row in enumerate(np.atleast_1d(read_mat(path)["annotations"]), start=1):
            fields: Any = row
            if "class" not in fields.dtype.names:
                raise DataError(f"{path} has no classes. Use the list with labels, {name}.")
            kind = int(fields["class"])
            if not 1 <= kind <= len(names):
                raise DataError(
                    f"{path}, row {number}: there is no class {kind}; {meta.name} names {len(names)}."
                )
            file = str(fields["fname"])
            origin = f"{path}, row {number}"
            yield labelled(f"{split}/{file}", str(folder / file), names[kind - 1], DOMAIN, split, origin)


def _copy(row: Row, note: Note) -> Iterable[Sample]:
    return from_copy(row, lambda name, origin, note: words(name), DOMAIN, note)


STANFORD_CARS = Benchmark(
    name="stanford-cars",
    title="Stanford Cars",
    task="classification",
    domain=DOMAIN,
    licence="non-commercial research",
    source="Krause et al., 2013 (ai.stanford.edu/~jkrause/cars; gone)",
    get="the original address is gone; use the Kaggle copy (jessicali9530/stanford-cars-dataset) and put "
    "devkit/ and cars_test_annos_withlabels.mat next to it.",
    layout="devkit/{cars_meta.mat, cars_train_annos.mat}, cars_test_annos_withlabels.mat, cars_train/*.jpg "
    "and cars_test/*.jpg",
    sizes={"train": 8144, "test": 8041},
    classes=196,
    original=_original,
    copy=_copy,
    hub=("tanganke/stanford_cars", "Donghyun99/Stanford-Cars"),
    refused={"HuggingFaceM4/Stanford-Cars": "it is a loading script, and CRAFT runs no scripts"},
)
