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
    row_id,
)
from craft.data.readers.rows import Row
from craft.data.sample import Sample

SPLITS = {"train": "train", "val": "validation", "test": "test"}


def _question(problem: dict[str, Any]) -> str:
    """The question after its hint, which often says what the picture shows."""
    hint = str(problem.get("hint") or "").strip()
    return f"{hint}\n{problem['question']}" if hint else str(problem["question"])


def _original(root: Path, note: Note) -> Iterator[Sample]:
    problems = find_below(root, "problems.json")
    if problems is None:
        return
    pids = read_annotations(need_below(problems.parent, "ScienceQA", "pid_splits.json", problems))
    images = find_below(root, "images") or root
    captions_file = find_below(root, "captions.json")
    captions = read_annotations(captions_file).get("captions", {}) if captions_file is not None else {}
    questions: dict[str, Any] = read_annotations(problems)
    text_only = 0
    for folder, split in SPLITS.items():
        for pid in pids.get(folder, []):
            problem = questions[pid]
            if not problem.get("image"):
                text_only += 1
                continue
            sample = Sample(
                id=f"{folder}/{pid}",
                image=str(images / folder / pid / problem["image"]),
                question=_question(problem),
                answer="",
                captions=(str(captions[pid]),) if captions.get(pid) else (),
                split=split,
                origin=f"{problems}, problem {pid}",
            )
            yield from choice_sample(sample, problem["choices"], problem["answer"], note)
    if text_only:
        note(f"left out: {text_only} questions without a picture")


def _copy(row: Row, note: Note) -> Iterator[Sample]:
    image = column(row, "image")
    if image is None:
        note("left out: questions without a picture")
        return
    id, question = f"{row.split}/{row_id(row)}", _question(row.values)
    sample = Sample(id, image, question, answer="", split=row.split, origin=row.origin)
    yield from choice_sample(sample, column(row, "choices"), column(row, "answer"), note)


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
