"""EuroSAT: Sentinel-2 pictures of ten kinds of land."""

from collections.abc import Iterable
from pathlib import Path

from craft.data.benchmarks.base import Benchmark
from craft.data.benchmarks.classes import ClassNames, from_class_folders, from_copy
from craft.data.benchmarks.reading import Note
from craft.data.readers.rows import Row
from craft.data.sample import Sample

DOMAIN = "satellite scene"
CLASSES = ClassNames(
    "EuroSAT",
    (
        "annual crop",
        "forest",
        "herbaceous vegetation",
        "highway",
        "industrial buildings",
        "pasture",
        "permanent crop",
        "residential buildings",
        "river",
        "sea or lake",
    ),
    {"Industrial": "industrial buildings", "Residential": "residential buildings", "SeaLake": "sea or lake"},
)


def _original(root: Path, note: Note) -> Iterable[Sample]:
    return from_class_folders(root, CLASSES, DOMAIN, note, prefer="2750")


def _copy(row: Row, note: Note) -> Iterable[Sample]:
    return from_copy(row, CLASSES.find, DOMAIN, note)


EUROSAT = Benchmark(
    name="eurosat",
    title="EuroSAT",
    task="classification",
    domain=DOMAIN,
    licence="MIT",
    source="Helber et al., 2019: Sentinel-2, RGB, 64 x 64 (github.com/phelber/EuroSAT)",
    get="EuroSAT_RGB.zip from zenodo.org/records/7711810 (EuroSAT.zip of 2018 unpacks to 2750/).",
    layout="2750/<Class>/<Class>_<n>.jpg or EuroSAT_RGB/<Class>/*.jpg",
    sizes={"all": 27000},
    classes=10,
    original=_original,
    copy=_copy,
    hub=("timm/eurosat-rgb", "blanchon/EuroSAT_RGB"),
)
