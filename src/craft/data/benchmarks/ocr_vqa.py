"""OCR-VQA: questions about book covers. Books whose cover can no longer be downloaded are left out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.data.benchmarks.base import Benchmark
from craft.data.benchmarks.reading import (
    Note,
    column,
    find_below,
    need_below,
    open_sample,
    read_annotations,
    row_id,
)
from craft.data.images import SUFFIXES, ImageSource, looks_like_image
from craft.data.readers.rows import Row
from craft.data.sample import Sample

SPLITS = {1: "train", 2: "validation", 3: "test"}
SUBSET = 30_000
"""Training images. §11: "we subsampled 30k out of the 166k training data"; 166k is the number of *images*."""


def _original(root: Path, note: Note) -> Iterator[Sample]:
    annotations = find_below(root, "dataset.json")
    if annotations is None:
        return
    folder = need_below(root, "OCR-VQA", "images", annotations)
    covers = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    books: dict[str, Any] = read_annotations(annotations)
    missing = broken = 0
    for id, book in books.items():
        path = covers.get(id)
        if path is None or not looks_like_image(path):
            missing, broken = missing + (path is None), broken + (path is not None)
            continue
        origin = f"{annotations}, book {id}"
        if book.get("split") not in SPLITS:
            raise DataError(f"{origin}: the split must be 1, 2 or 3, not {book.get('split')!r}.")
        yield from _questions(
            id, str(path), book["questions"], book["answers"], SPLITS[book["split"]], origin
        )
    if missing or broken:
        note(
            f"left out: {missing + broken} of {len(books)} books without a usable cover ({missing} missing, "
            f"{broken} files that are not pictures; many of the addresses are dead)"
        )


def _questions(
    id: str, image: ImageSource, questions: list[str], answers: list[str], split: str, origin: str
) -> Iterator[Sample]:
    if len(questions) != len(answers):
        raise DataError(f"{origin}: {len(questions)} questions and {len(answers)} answers.")
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        yield from open_sample(f"{id}/{number}", image, question, answer, split, origin)


def _copy(row: Row, note: Note) -> Iterator[Sample]:
    image = column(row, "image")
    if image is None:
        note("left out: books without a cover")
        return
    id = f"{row.split}/{row.values.get('image_id', row_id(row))}"
    yield from _questions(id, image, column(row, "questions"), column(row, "answers"), row.split, row.origin)


OCR_VQA = Benchmark(
    name="ocr-vqa",
    title="OCR-VQA",
    task="vqa",
    domain="book cover",
    licence="not stated",
    source="Mishra et al., 2019 (ocr-vqa.github.io)",
    get="dataset.json and loadDataset.py (which fetches the covers) from ocr-vqa.github.io.",
    layout="dataset.json and images/<id>.jpg",
    sizes={"train": 166022, "validation": 20731, "test": 20796},
    counted="images",
    classes=0,
    original=_original,
    copy=_copy,
    hub=("howard-hou/OCR-VQA",),
    train_limit=SUBSET,
)
