"""PlantVillage: leaves of 14 crops, healthy or diseased, 38 classes."""

import re
from collections.abc import Iterable
from pathlib import Path

from craft.data.benchmarks.base import Benchmark
from craft.data.benchmarks.classes import ClassNames, from_class_folders, from_copy
from craft.data.benchmarks.reading import Note
from craft.data.readers.rows import Row
from craft.data.sample import Sample
from craft.data.spelling import words

DOMAIN = "plant leaf"
FOLDERS = (
    "Apple___Apple_scab",
    "Apple___Black_rot",
    "Apple___Cedar_apple_rust",
    "Apple___healthy",
    "Blueberry___healthy",
    "Cherry_(including_sour)___Powdery_mildew",
    "Cherry_(including_sour)___healthy",
    "Corn_(maize)___Cercospora_leaf_spot Gray_leaf_spot",
    "Corn_(maize)___Common_rust_",
    "Corn_(maize)___Northern_Leaf_Blight",
    "Corn_(maize)___healthy",
    "Grape___Black_rot",
    "Grape___Esca_(Black_Measles)",
    "Grape___Leaf_blight_(Isariopsis_Leaf_Spot)",
    "Grape___healthy",
    "Orange___Haunglongbing_(Citrus_greening)",
    "Peach___Bacterial_spot",
    "Peach___healthy",
    "Pepper,_bell___Bacterial_spot",
    "Pepper,_bell___healthy",
    "Potato___Early_blight",
    "Potato___Late_blight",
    "Potato___healthy",
    "Raspberry___healthy",
    "Soybean___healthy",
    "Squash___Powdery_mildew",
    "Strawberry___Leaf_scorch",
    "Strawberry___healthy",
    "Tomato___Bacterial_spot",
    "Tomato___Early_blight",
    "Tomato___Late_blight",
    "Tomato___Leaf_Mold",
    "Tomato___Septoria_leaf_spot",
    "Tomato___Spider_mites Two-spotted_spider_mite",
    "Tomato___Target_Spot",
    "Tomato___Tomato_Yellow_Leaf_Curl_Virus",
    "Tomato___Tomato_mosaic_virus",
    "Tomato___healthy",
)
"""The class folders of the original, `Crop___Disease`."""


def leaf_words(folder: str) -> str:
    """A class folder in words: "Apple___Apple_scab" -> "Apple, apple scab". Brackets after the crop are
    dropped, and "Pepper,_bell" becomes "Bell pepper". Source: ours."""
    crop, disease = (words(part) for part in folder.split("___"))
    crop = re.sub(r" ?\(.*?\)", "", crop)
    if ", " in crop:
        noun, kind = crop.split(", ")
        crop = f"{kind} {noun}".capitalize()
    return f"{crop}, {disease[:1].lower()}{disease[1:]}"


CLASSES = ClassNames(
    "PlantVillage",
    map(leaf_words, FOLDERS),
    {
        spelling: leaf_words(folder)
        for folder in FOLDERS
        for spelling in (folder, re.sub(r"_\(.*?\)___", "___", folder))
    },
    left_out=("Background_without_leaves", "Background"),
)


def _original(root: Path, note: Note) -> Iterable[Sample]:
    return from_class_folders(root, CLASSES, DOMAIN, note, prefer="color")


def _copy(row: Row, note: Note) -> Iterable[Sample]:
    return from_copy(row, CLASSES.find, DOMAIN, note)


PLANT_VILLAGE = Benchmark(
    name="plantvillage",
    title="PlantVillage",
    task="classification",
    domain=DOMAIN,
    licence="CC0 at Mendeley; GitHub states none",
    source="Mohanty et al., 2016 (github.com/spMohanty/PlantVillage-Dataset, data.mendeley.com tywbtsjrjv)",
    get="clone github.com/spMohanty/PlantVillage-Dataset, or the zip without augmentation from "
    "data.mendeley.com/datasets/tywbtsjrjv/1.",
    layout="raw/color/<Crop___Disease>/*.JPG, or class folders with these names",
    sizes={"all": 54303},
    classes=38,
    original=_original,
    copy=_copy,
    hub=(
        "Project-AgML/plant_village_classification",
        "BrandonFors/Plant-Diseases-PlantVillage-Dataset",
        "GVJahnavi/PlantVillage_dataset",
    ),
)
