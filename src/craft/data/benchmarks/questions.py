"""The four benchmarks that come with questions."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from craft.core.errors import DataError
from craft.core.records import Record
from craft.data.benchmarks.base import (
    Benchmark,
    Note,
    choice_sample,
    column,
    entry,
    find_below,
    image_folder,
    inside,
    need_below,
    open_sample,
    read_annotations,
    row_id,
)
from craft.data.images import SUFFIXES, ImageSource, looks_like_image, open_image
from craft.data.readers.rows import Row
from craft.data.sample import Sample
from craft.data.splits import SPLIT_NAMES


class _Problem(Record):
    question: str
    choices: list[Any] | None = None
    image: str | None = None


class _Captions(Record):
    captions: dict[str, Any] = Field(default_factory=dict)


class _Book(Record):
    questions: list[Any]
    answers: list[Any]
    split: Any


class _Entry(Record):
    image_name: Any
    phrase_type: Any
    question: Any
    answer: Any


def _problems(root: Path, title: str, task: str = "") -> tuple[Path | None, list[tuple[str, str, Any]]]:
    """The problems.json of a copy, and (folder, id, problem) of each problem that pid_splits.json lists for a
    sub-task; (None, []) without this file."""
    path = find_below(root, "problems.json")
    if path is None:
        return None, []
    lists = need_below(path.parent, title, "pid_splits.json", path)
    pids = read_annotations(lists, dict[str, list[str]])
    problems = read_annotations(path, dict[str, _Problem])
    listed = [(folder, pid) for folder in ("train", "val", "test") for pid in pids.get(task + folder, [])]
    if missing := [pid for _, pid in listed if pid not in problems]:
        raise DataError(f"{path} lacks {len(missing)} problems that {lists} lists ({missing[0]}). Copy both.")
    return path, [(folder, pid, problems[pid]) for folder, pid in listed]


# IconQA: questions about abstract diagrams; the sub-task `choose_txt` (options in words), the paper's.

TASK = "choose_txt"
"""§11's 18,946 and 6,316 questions are those of this sub-task."""


def _iconqa(root: Path, note: Note) -> Iterator[Sample]:
    path, problems = _problems(root, "IconQA", f"{TASK}_")
    if path is None or not problems:
        return
    first = f"{problems[0][0]}/{TASK}/{problems[0][1]}/image.png"
    images = image_folder(path.parent, "IconQA", "iconqa", path, first)
    for folder, pid, problem in problems:
        image, question = str(inside(images, f"{folder}/{TASK}/{pid}/image.png")), str(problem["question"])
        split, origin = SPLIT_NAMES[folder], f"{path}, problem {pid}"
        sample = Sample(f"{folder}/{pid}", image, question, answer="", split=split, origin=origin)
        yield from choice_sample(sample, problem.get("choices") or (), problem.get("answer"), note)


def _iconqa_copy(row: Row, note: Note) -> Iterator[Sample]:
    if column(row, "ques_type") != TASK:
        return
    note("the hub copy has no training split; training needs the original zip")
    choices, answer = column(row, "choices"), column(row, "answer")
    options = _separated(choices, answer) if isinstance(choices, str) else list(choices)
    if not options:
        note("left out: questions whose options cannot be told apart because of a comma inside one")
        return
    id = f"{row.split}/{row.values.get('question_id', row.origin)}"
    image, question = column(row, "query_image", "image"), str(column(row, "question"))
    sample = Sample(id, image, question, answer="", split=row.split, origin=row.origin)
    yield from choice_sample(sample, options, answer, note)


def _separated(choices: str, answer: Any) -> list[str]:
    """The options that the hub copy joins with commas; none if the answer is torn by a comma of its own.

    A comma before a space belongs to an option if there are others ("red,blue, dark").
    """
    for pattern in (r",(?! )", r", *"):
        options = [word.strip() for word in re.split(pattern, choices)]
        if len(options) > 1 and (str(answer).strip() in options or str(answer).strip() not in choices):
            return options
    return []


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
    original=_iconqa,
    copy=_iconqa_copy,
    hub=("lmms-lab/ICON-QA", "lmms-lab-encoder/ICON-QA"),
)


# OCR-VQA: questions about book covers. Books whose cover can no longer be downloaded are left out.

OCR_VQA_SPLITS = {1: "train", 2: "validation", 3: "test"}
SUBSET = 30_000
"""Training images. §11: "we subsampled 30k out of the 166k training data"; 166k is the number of *images*."""


def _ocr_vqa(root: Path, note: Note) -> Iterator[Sample]:
    annotations = find_below(root, "dataset.json")
    if annotations is None:
        return
    folder = need_below(root, "OCR-VQA", "images", annotations)
    while (nested := entry(folder, folder.name)) is not None and nested.is_dir():
        folder = nested
    covers = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    books = read_annotations(annotations, dict[str, _Book])
    missing = broken = cut = 0
    for id, book in books.items():
        path = covers.get(id)
        if path is None or not looks_like_image(path):
            missing, broken = missing + (path is None), broken + (path is not None)
            continue
        if not _is_whole(path):
            cut += 1
            continue
        origin = f"{annotations}, book {id}"
        if book["split"] not in (1, 2, 3):
            raise DataError(f"{origin}: the split must be 1, 2 or 3, not {book['split']!r}.")
        yield from _about_book(
            id, str(path), book["questions"], book["answers"], OCR_VQA_SPLITS[book["split"]], origin
        )
    if missing or broken or cut:
        note(
            f"left out: {missing + broken + cut} of {len(books)} books without a usable cover ({missing} "
            f"missing, {broken} files that are not pictures, {cut} truncated; many of the addresses are dead)"
        )


_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82", b"GI": b"\x00;"}
"""How whole JPEG, PNG and GIF files end, possibly with a few bytes after it, by how they start."""


def _is_whole(path: Path) -> bool:
    """Whether a picture is complete. Only one that does not end as its format does is decoded."""
    with open(path, "rb") as file:
        start = file.read(2)
        file.seek(max(0, os.path.getsize(path) - 64))
        if start in _ENDS and _ENDS[start] in file.read():
            return True
    try:
        open_image(path)
    except DataError:
        return False
    return True


def _about_book(
    id: str, image: ImageSource, questions: list[str], answers: list[str], split: str, origin: str
) -> Iterator[Sample]:
    if len(questions) != len(answers):
        raise DataError(f"{origin}: {len(questions)} questions and {len(answers)} answers.")
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        yield from open_sample(f"{id}/{number}", image, question, answer, split, origin)


def _ocr_vqa_copy(row: Row, note: Note) -> Iterator[Sample]:
    image = column(row, "image")
    if image is None:
        note("left out: books without a cover")
        return
    id = f"{row.split}/{row.values.get('image_id', row_id(row))}"
    yield from _about_book(id, image, column(row, "questions"), column(row, "answers"), row.split, row.origin)


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
    original=_ocr_vqa,
    copy=_ocr_vqa_copy,
    hub=("howard-hou/OCR-VQA",),
    train_limit=SUBSET,
)


# ScienceQA: school science; the questions that have an image.


def _hinted(problem: dict[str, Any]) -> str:
    """The question after its hint, which often says what the image shows."""
    hint = str(problem.get("hint") or "").strip()
    return f"{hint}\n{problem['question']}" if hint else str(problem["question"])


def _scienceqa(root: Path, note: Note) -> Iterator[Sample]:
    path, problems = _problems(root, "ScienceQA")
    if path is None:
        return
    with_image = [(folder, pid, problem) for folder, pid, problem in problems if problem.get("image")]
    first = "/".join((*with_image[0][:2], with_image[0][2]["image"])) if with_image else ""
    outer = find_below(root, "images") or root
    images = image_folder(outer.parent, "ScienceQA", outer.name, path, first)
    captions_file = find_below(root, "captions.json")
    content = read_annotations(captions_file, _Captions) if captions_file is not None else {}
    captions = content.get("captions", {})
    for folder, pid, problem in with_image:
        sample = Sample(
            id=f"{folder}/{pid}",
            image=str(inside(images, f"{folder}/{pid}/{problem['image']}")),
            question=_hinted(problem),
            answer="",
            captions=(str(captions[pid]),) if captions.get(pid) else (),
            split=SPLIT_NAMES[folder],
            origin=f"{path}, problem {pid}",
        )
        yield from choice_sample(sample, problem.get("choices") or (), problem.get("answer"), note)
    if text_only := len(problems) - len(with_image):
        note(f"left out: {text_only} questions without a picture")


def _scienceqa_copy(row: Row, note: Note) -> Iterator[Sample]:
    image = column(row, "image")
    if image is None:
        note("left out: questions without a picture")
        return
    id, question = f"{row.split}/{row_id(row)}", _hinted(row.values)
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
    original=_scienceqa,
    copy=_scienceqa_copy,
    hub=("derek-thomas/ScienceQA", "lmms-lab/ScienceQA/ScienceQA-IMG"),
)


# VQA-RAD: questions of clinicians about radiology images.

VQA_RAD_IMAGES = "VQA_RAD Image Folder"


def _vqa_rad(root: Path, note: Note) -> Iterator[Sample]:
    annotations = find_below(root, "VQA_RAD Dataset Public.json")
    if annotations is None:
        return
    entries = read_annotations(annotations, list[_Entry])
    first = str(entries[0]["image_name"]).strip() if entries else ""
    images = image_folder(root, "VQA-RAD", VQA_RAD_IMAGES, annotations, first)
    for number, item in enumerate(entries):
        split = "test" if str(item["phrase_type"]).strip().startswith("test") else "train"
        kind = str(item.get("answer_type", "")).strip().lower() or _open_or_closed(item["answer"])
        image = str(inside(images, str(item["image_name"]).strip()))
        id, origin = str(item.get("qid", number)), f"{annotations}, entry {number + 1}"
        yield from open_sample(id, image, item["question"], item["answer"], split, origin, kind)


def _vqa_rad_copy(row: Row, note: Note) -> Iterator[Sample]:
    note("the hub copy has no answer_type; questions with the answer yes or no count as closed")
    id, answer = row_id(row), column(row, "answer")
    kind = _open_or_closed(answer)
    yield from open_sample(
        id, column(row, "image"), column(row, "question"), answer, row.split, row.origin, kind
    )


def _open_or_closed(answer: object) -> str:
    return "closed" if str(answer).strip().lower() in ("yes", "no") else "open"


VQA_RAD = Benchmark(
    name="vqa-rad",
    title="VQA-RAD",
    task="vqa",
    domain="radiology picture",
    licence="CC0 1.0",
    source="Lau et al., 2018 (osf.io/89kps)",
    get="the files of osf.io/89kps.",
    layout=f'"VQA_RAD Dataset Public.json" and "{VQA_RAD_IMAGES}/*.jpg"',
    sizes={"train": 1797, "test": 451},
    original=_vqa_rad,
    copy=_vqa_rad_copy,
    hub=("flaviagiammarino/vqa-rad",),
)
