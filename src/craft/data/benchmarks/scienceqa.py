"""ScienceQA: school science; the questions that have a picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from craft.data.benchmarks.base import Benchmark
from craft.data.benchmarks.reading import (
    Note,
    choice_sample,
    column,
    find_below,
    need_below,
    read_annotations,
)
from craft.data.parquet import Row
from craft.data.sample import Sample

SPLITS = {"train": "train", "val": "validation", "test": "test"}


def _question(told: dict[str, Any]) -> str:
    """The question behind its hint, which often tells what the picture shows."""
    hint = str(told.get("hint") or "").strip()
    return f"{hint}\n{told['question']}" if hint else str(told["question"])


def _original(root: Path, note: Note) -> Iterator[Sample]:
    problems = find_below(root, "problems.json")
    if problems is None:
        return
    pids = read_annotations(need_below(problems.parent, "ScienceQA", "pid_splits.json", problems))
    images = find_below(root, "images") or root
    told_by = find_below(root, "captions.json")
    captions = read_annotations(told_by).get("captions", {}) if told_by is not None else {}
    questions: dict[str, Any] = read_annotations(problems)
    text_only = 0
    for folder, split in SPLITS.items():
        for pid in pids.get(folder, []):
            told = questions[pid]
            if not told.get("image"):
                text_only += 1
                continue
            yield from choice_sample(
                f"{folder}/{pid}",
                str(images / folder / pid / told["image"]),
                _question(told),
                told["choices"],
                told["answer"],
                split,
                f"{problems}, problem {pid}",
                note,
                captions=(str(captions[pid]),) if captions.get(pid) else (),
            )
    if text_only:
        note(f"left out: {text_only} questions without a picture")


def _copy(row: Row, note: Note) -> Iterator[Sample]:
    image = column(row, "image")
    if image is None:
        note("left out: questions without a picture")
        return
    id = f"{row.split}/{row.origin.rpartition('/')[2]}"
    answer, choices = column(row, "answer"), column(row, "choices")
    yield from choice_sample(id, image, _question(row.values), choices, answer, row.split, row.origin, note)


SCIENCEQA = Benchmark(
    name="scienceqa",
    title="ScienceQA",
    task="vqa",
    domain="school science picture",
    licence="CC BY-NC-SA 4.0",
    source="Lu et al., 2022 (scienceqa.github.io)",
    get="problems.json, pid_splits.json and captions.json from github.com/lupantech/ScienceQA, and its "
    "image zips.",
    layout="problems.json, pid_splits.json and images/{train,val,test}/<pid>/image.png",
    sizes={"train": 6218, "validation": 2097, "test": 2017},
    classes=0,
    original=_original,
    copy=_copy,
    hub=("derek-thomas/ScienceQA", "lmms-lab/ScienceQA/ScienceQA-IMG"),
)
