"""VQA-RAD: questions of clinicians about radiology pictures."""

from collections.abc import Iterator
from pathlib import Path

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
from craft.data.readers.rows import Row
from craft.data.sample import Sample

FOLDER = "VQA_RAD Image Folder"


def _original(root: Path, note: Note) -> Iterator[Sample]:
    annotations = find_below(root, "VQA_RAD Dataset Public.json")
    if annotations is None:
        return
    images = need_below(root, "VQA-RAD", FOLDER, annotations)
    for number, entry in enumerate(read_annotations(annotations)):
        split = "test" if str(entry["phrase_type"]).strip().startswith("test") else "train"
        kind = str(entry.get("answer_type", "")).strip().lower() or _kind(entry["answer"])
        image = str(images / str(entry["image_name"]).strip())
        id, origin = str(entry.get("qid", number)), f"{annotations}, entry {number + 1}"
        yield from open_sample(id, image, entry["question"], entry["answer"], split, origin, kind)


def _copy(row: Row, note: Note) -> Iterator[Sample]:
    note("the hub copy has no answer_type; questions with the answer yes or no count as closed")
    id, answer = row_id(row), column(row, "answer")
    kind = _kind(answer)
    yield from open_sample(
        id, column(row, "image"), column(row, "question"), answer, row.split, row.origin, kind
    )


def _kind(answer: object) -> str:
    return "closed" if str(answer).strip().lower() in ("yes", "no") else "open"


VQA_RAD = Benchmark(
    name="vqa-rad",
    title="VQA-RAD",
    task="vqa",
    domain="radiology picture",
    licence="CC0 1.0",
    source="Lau et al., 2018 (osf.io/89kps)",
    get="the files of osf.io/89kps.",
    layout=f'"VQA_RAD Dataset Public.json" and "{FOLDER}/*.jpg"',
    sizes={"train": 1797, "test": 451},
    classes=0,
    original=_original,
    copy=_copy,
    hub=("flaviagiammarino/vqa-rad",),
)
