"""What a data set looks like: counts, sizes, lengths, as numbers and as a picture."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from craft.core.progress import track
from craft.data.benchmarks.base import Benchmark
from craft.data.check import distinct
from craft.data.images import image_bytes, open_image
from craft.data.packed import Packed
from craft.data.sample import Data, Sample

SHOWN = 40
"""Classes, and pictures of the contact sheet, that are shown at most."""


def data_stats(data: Data, progress: bool = True) -> dict[str, Any]:
    """Counts by split, class and kind of question; picture sizes; words in questions and answers.

    Sizes come from the files' heads: nothing is decoded.

    Raises:
        DataError: a picture cannot be read.
    """
    samples = data.all_samples()
    pictures = distinct(samples)
    sizes = [_size(sample) for sample in (track(pictures, "sizes") if progress else pictures)]
    classes = Counter(sample.label for sample in samples if sample.label is not None)
    return {
        "name": data.name,
        "task": data.task,
        "splits": {split: len(getattr(data, split)) for split in ("train", "validation", "test")},
        "images": len(pictures),
        "classes": dict(classes.most_common()),
        "kinds": dict(Counter(sample.kind for sample in samples if sample.kind).most_common()),
        "options": dict(sorted(Counter(len(sample.choices) for sample in samples).items())),
        "width": _spread([width for width, _ in sizes]),
        "height": _spread([height for _, height in sizes]),
        "question words": _spread([len(sample.question.split()) for sample in samples]),
        "prompt words": _spread([len(sample.prompt().split()) for sample in samples]),
        "answer words": _spread([len(sample.answer_text.split()) for sample in samples]),
    }


def draw_stats(data: Data, path: str | Path) -> Path:
    """A page with the class counts, picture sizes and lengths; written as PNG (or what the ending says)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    samples = data.all_samples()
    sizes = np.array([_size(sample) for sample in distinct(samples)])
    counts = Counter(sample.concept for sample in samples).most_common(SHOWN)
    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    classes = figure.add_subplot(grid[0, :])
    classes.bar(range(len(counts)), [count for _, count in counts], color="#4477aa")
    names = [_short(name) for name, _ in counts]  # words as they are: a "$" in them begins no formula
    classes.set_xticks(range(len(counts)), names, rotation=90, fontsize=7, parse_math=False)
    total = len({sample.concept for sample in samples})
    title = f"{data.name}: samples by class" + (f" ({SHOWN} of {total})" if total > SHOWN else "")
    classes.set_title(title, parse_math=False)
    left, middle, right = (figure.add_subplot(grid[1, n]) for n in range(3))
    most = 1.1 * sizes.max()
    left.scatter(sizes[:, 0], sizes[:, 1], s=9, alpha=0.4, color="#4477aa")
    left.set(title="pictures", xlabel="width, pixels", ylabel="height, pixels")
    left.set(xlim=(0, most), ylim=(0, most), aspect="equal")
    for axis, title, values in (
        (middle, "prompts: question, options, directive", [len(s.prompt().split()) for s in samples]),
        (right, "answers", [len(sample.answer_text.split()) for sample in samples]),
    ):
        axis.hist(values, bins=[n - 0.5 for n in range(max(values) + 2)], color="#4477aa")
        axis.set(title=title, xlabel="words", ylabel="samples")
    for axis in (classes, left, middle, right):  # all are counts
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (left, middle, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=120)
    return Path(path)


def expected(data: Data, benchmark: Benchmark) -> list[str]:
    """Sentences about splits that are smaller or larger than the benchmark's."""
    own = data.validation if "validation" in benchmark.sizes else []  # else a slice of the training set
    found = {
        "train": data.train if own else [*data.train, *data.validation],
        "validation": own,
        "test": data.test,
        "all": data.all_samples(),
    }
    told = []
    for split, size in benchmark.sizes.items():
        there = found[split] if benchmark.counted == "questions" else distinct(found[split])
        wanted = size if benchmark.train_limit is None or split != "train" else benchmark.train_limit.count
        if len(there) != wanted:
            where = "" if split == "all" else f" in {split}"
            things = "pictures" if benchmark.task == "classification" else benchmark.counted
            told.append(f"{len(there)} {things}{where}; {benchmark.title} has {wanted}")
    return told


def showcase(data: Data, count: int = SHOWN) -> list[Sample]:
    """Samples for a contact sheet: the classes in turn, in the order of their names."""
    groups: dict[str, list[Sample]] = {}
    for sample in distinct(data.all_samples()):
        groups.setdefault(sample.concept, []).append(sample)
    chosen: list[Sample] = []
    for turn in range(count):
        chosen += [groups[name][turn] for name in sorted(groups) if turn < len(groups[name])]
        if len(chosen) >= count:
            break
    return chosen[:count]


def _size(sample: Sample) -> tuple[int, int]:
    if isinstance(sample.image, str | bytes | Packed):
        try:
            with Image.open(io.BytesIO(image_bytes(sample.image))) as image:
                return image.size
        except (OSError, Image.DecompressionBombError):
            pass  # open_image says what is wrong
    return open_image(sample.image, sample.origin).size


def _spread(values: list[int]) -> dict[str, int | float]:
    array = np.asarray(values or [0])
    return {"least": int(array.min()), "median": float(np.median(array)), "most": int(array.max())}


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
