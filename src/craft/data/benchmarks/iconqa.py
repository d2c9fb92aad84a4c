"""IconQA: questions about abstract diagrams; the sub-task `choose_txt` (options in words), the paper's."""

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
from craft.data.readers.rows import Row
from craft.data.sample import Sample

SPLITS = {"train": "train", "val": "validation", "test": "test"}
TASK = "choose_txt"
"""§11's 18,946 and 6,316 questions are those of this sub-task."""


def _original(root: Path, note: Note) -> Iterator[Sample]:
    problems = find_below(root, "problems.json")
    if problems is None:
        return
    pids = read_annotations(need_below(problems.parent, "IconQA", "pid_splits.json", problems))
    if not any(f"{TASK}_{folder}" in pids for folder in SPLITS):
        return
    images = need_below(problems.parent, "IconQA", "iconqa", problems)
    questions: dict[str, Any] = read_annotations(problems)
    for folder, split in SPLITS.items():
        for pid in pids.get(f"{TASK}_{folder}", []):
            problem = questions[pid]
            sample = Sample(
                id=f"{folder}/{pid}",
                image=str(images / folder / TASK / pid / "image.png"),
                question=str(problem["question"]),
                answer="",
                split=split,
                origin=f"{problems}, problem {pid}",
            )
            yield from choice_sample(sample, problem["choices"], problem["answer"], note)


def _copy(row: Row, note: Note) -> Iterator[Sample]:
    if column(row, "ques_type") != TASK:
        return
    note("the hub copy has no training split; training needs the original zip")
    choices = column(row, "choices")
    options = [word.strip() for word in choices.split(",")] if isinstance(choices, str) else list(choices)
    sample = Sample(
        id=f"{row.split}/{row.values.get('question_id', row.origin)}",
        image=column(row, "query_image", "image"),
        question=str(column(row, "question")),
        answer="",
        split=row.split,
        origin=row.origin,
    )
    yield from choice_sample(sample, options, column(row, "answer"), note)


ICONQA = Benchmark(
    name="iconqa",
    title="IconQA (choose_txt)",
    task="vqa",
    domain="diagram",
    licence="CC BY-NC-SA 4.0",
    source="Lu et al., 2021 (iconqa.github.io)",
    get="iconqa_data.zip from iconqa.github.io.",
    layout="iconqa_data/{problems.json, pid_splits.json} and "
    "iconqa_data/iconqa/{train,val,test}/choose_txt/<pid>/image.png",
    sizes={"train": 18946, "validation": 6316, "test": 6316},
    classes=0,
    original=_original,
    copy=_copy,
    hub=("lmms-lab/ICON-QA", "lmms-lab-encoder/ICON-QA"),
)
