"""Kvasir: endoscopic pictures of the gastrointestinal tract, eight classes; version 1 (the paper's) or 2."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from craft.data.benchmarks.base import Benchmark
from craft.data.benchmarks.classes import ClassNames, from_class_folders, from_copy
from craft.data.benchmarks.reading import Note
from craft.data.readers.rows import Row
from craft.data.sample import Sample

DOMAIN = "gastrointestinal endoscopy"
CLASSES = ClassNames(
    "Kvasir",
    (
        "dyed lifted polyps",
        "dyed resection margins",
        "esophagitis",
        "normal cecum",
        "normal pylorus",
        "normal z-line",
        "polyps",
        "ulcerative colitis",
    ),
)
MOST_IN_V1 = 500
"""The number of pictures of a class in version 1; version 2 has 1,000."""


def _original(root: Path, note: Note) -> Iterable[Sample]:
    samples = list(from_class_folders(root, CLASSES, DOMAIN, note, prefer="kvasir-dataset"))
    if samples and max(Counter(s.label for s in samples).values()) > MOST_IN_V1:
        note("this is Kvasir v2 (1,000 pictures per class); the paper's is v1 (500 per class)")
    return samples


def _copy(row: Row, note: Note) -> Iterable[Sample]:
    return from_copy(row, CLASSES.find, DOMAIN, note)


KVASIR = Benchmark(
    name="kvasir",
    title="Kvasir",
    task="classification",
    domain=DOMAIN,
    licence="research and education only",
    source="Pogorelov et al., 2017 (datasets.simula.no/kvasir)",
    get="kvasir-dataset.zip (v1, the paper's) or kvasir-dataset-v2.zip from datasets.simula.no/kvasir.",
    layout="kvasir-dataset/<class>/*.jpg or kvasir-dataset-v2/<class>/*.jpg",
    sizes={"all": 4000},
    classes=8,
    original=_original,
    copy=_copy,
    refused={
        "SimulaMet-HOST/Kvasir-VQA": "it is another task (questions, not classes)",
        "sahilur/hyper-kvasir-labeled-images": "it is HyperKvasir, with other classes",
    },
)
