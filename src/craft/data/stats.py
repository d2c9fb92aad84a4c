"""What a data set looks like: counts, sizes and lengths as numbers and as a figure, and a contact sheet."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from craft.core.errors import DataError
from craft.core.progress import track
from craft.data.benchmarks.base import Benchmark
from craft.data.images import Packed, image_bytes, lazy_image, open_image
from craft.data.sample import Data, Sample, distinct

SHOWN = 40
"""The most classes, and images of the contact sheet, that are shown."""


def data_stats(data: Data, progress: bool = True) -> dict[str, Any]:
    """Counts by split, class and kind of question; image sizes; words in questions and answers.

    Sizes come from the headers of the files; no image is decoded.

    Raises:
        DataError: an image cannot be read.
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
    """Draw the class counts, image sizes and lengths; the ending of `path` (.png) chooses the format."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    samples = data.all_samples()
    sizes = np.array([_size(sample) for sample in distinct(samples)])
    counts = Counter(sample.concept for sample in samples).most_common(SHOWN)
    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    classes = figure.add_subplot(grid[0, :])
    classes.bar(range(len(counts)), [count for _, count in counts], color="#4477aa")
    names = [_short(name) for name, _ in counts]  # as words: a "$" in a name starts no formula
    classes.set_xticks(range(len(counts)), names, rotation=90, fontsize=7, parse_math=False)
    total = len({sample.concept for sample in samples})
    title = f"{data.name}: samples by class" + (f" ({SHOWN} of {total})" if total > SHOWN else "")
    classes.set_title(title, parse_math=False)
    left, middle, right = (figure.add_subplot(grid[1, n]) for n in range(3))
    most = 1.1 * sizes.max()
    left.scatter(sizes[:, 0], sizes[:, 1], s=9, alpha=0.4, color="#4477aa")
    left.set(title="images", xlabel="width, pixels", ylabel="height, pixels")
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
    official = data.validation if "validation" in benchmark.sizes else []  # otherwise a slice of training
    splits = {
        "train": data.train if official else [*data.train, *data.validation],
        "validation": official,
        "test": data.test,
        "all": data.all_samples(),
    }
    sentences = []
    for split, size in benchmark.sizes.items():
        samples = splits[split] if benchmark.counted == "questions" else distinct(splits[split])
        wanted = size if benchmark.train_limit is None or split != "train" else benchmark.train_limit
        if len(samples) != wanted:
            where = "" if split == "all" else f" in {split}"
            things = "images" if benchmark.task == "classification" else benchmark.counted
            sentences.append(f"{len(samples)} {things}{where}; {benchmark.title} has {wanted}")
    return sentences


def contact_sheet(
    samples: Sequence[Sample], path: str | Path | None = None, columns: int = 8, cell: int = 96
) -> Image.Image:
    """Draw the samples' images in a grid, each above its label or answer.

    Args:
        samples: what to draw.
        path: a PNG file to write; None writes none.
        columns: images in a row.
        cell: pixels of an image's longer side.


    Raises:
        DataError: no samples, or an image that cannot be opened.
    """
    if not samples:
        raise DataError("a contact sheet needs at least one sample.")
    columns = min(columns, len(samples))
    rows, caption, gap = -(-len(samples) // columns), 14, 4
    width, height = columns * (cell + gap) + gap, rows * (cell + caption + gap) + gap
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for n, sample in enumerate(samples):
        x, y = gap + n % columns * (cell + gap), gap + n // columns * (cell + caption + gap)
        image = open_image(sample.image, sample.origin)
        scale = cell / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
        sheet.paste(image, (x + (cell - size[0]) // 2, y + (cell - size[1]) // 2))
        text = " ".join(sample.concept.split())[:cell]  # one line; a letter is at least a pixel wide
        while len(text) > 1 and draw.textlength(text) > cell:
            text = f"{text.removesuffix('…')[:-1].rstrip()}…"
        draw.text((x, y + cell + 1), text, fill="black")
    if path is not None:
        sheet.save(path, format="PNG")
    return sheet


def showcase(data: Data, count: int = SHOWN) -> list[Sample]:
    """Samples for a contact sheet, from each class in turn, in the order of their names."""
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
            with lazy_image(io.BytesIO(image_bytes(sample.image))) as image:
                return image.size
        except (OSError, Image.DecompressionBombError):
            pass  # the error of open_image says what is wrong
    return open_image(sample.image, sample.origin).size


def _spread(values: list[int]) -> dict[str, int | float]:
    array = np.asarray(values or [0])
    return {"least": int(array.min()), "median": float(np.median(array)), "most": int(array.max())}


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
