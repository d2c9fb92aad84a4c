"""The six benchmarks of labelled images."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from craft.core.errors import DataError
from craft.data.benchmarks.base import (
    Benchmark,
    Note,
    column,
    find_below,
    image_folder,
    inside,
    need_below,
    read_annotations,
    read_mat,
)
from craft.data.benchmarks.classes import (
    LABELS,
    ClassNames,
    class_folders,
    from_class_folders,
    from_copy,
)
from craft.data.readers.rows import Row
from craft.data.sample import Sample, labelled
from craft.data.spelling import words

# EuroSAT: Sentinel-2 images of ten kinds of land.

EUROSAT_CLASSES = ClassNames(
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


EUROSAT = Benchmark(
    name="eurosat",
    title="EuroSAT",
    task="classification",
    domain="satellite scene",
    licence="MIT",
    source="Helber et al., 2019: Sentinel-2, RGB, 64 x 64 (github.com/phelber/EuroSAT)",
    get="EuroSAT_RGB.zip from zenodo.org/records/7711810 (EuroSAT.zip of 2018 unpacks to 2750/).",
    layout="2750/<Class>/<Class>_<n>.jpg or EuroSAT_RGB/<Class>/*.jpg",
    sizes={"all": 27000},
    classes=10,
    original=partial(from_class_folders, classes=EUROSAT_CLASSES, prefer="2750"),
    copy=partial(from_copy, classes=EUROSAT_CLASSES),
    hub=("timm/eurosat-rgb", "blanchon/EuroSAT_RGB"),
)


# Flowers-102: British flowers. The original names no classes; the names are those its authors published.

FLOWERS = tuple(
    """pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily,
    moon orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea,
    spear thistle, yellow iris, globe-flower, purple coneflower, peruvian lily, balloon flower,
    giant white arum lily, fire lily, pincushion flower, fritillary, red ginger, grape hyacinth, corn poppy,
    prince of wales feathers, stemless gentian, artichoke, sweet william, carnation, garden phlox,
    love in the mist, mexican aster, alpine sea holly, ruby-lipped cattleya, cape flower, great masterwort,
    siam tulip, lenten rose, barbeton daisy, daffodil, sword lily, poinsettia, bolero deep blue, wallflower,
    marigold, buttercup, oxeye daisy, common dandelion, petunia, wild pansy, primula, sunflower, pelargonium,
    bishop of llandaff, gaura, geranium, orange dahlia, pink-yellow dahlia, cautleya spicata,
    japanese anemone, black-eyed susan, silverbush, californian poppy, osteospermum, spring crocus,
    bearded iris, windflower, tree poppy, gazania, azalea, water lily, rose, thorn apple, morning glory,
    passion flower, lotus, toad lily, anthurium, frangipani, clematis, hibiscus, columbine, desert-rose,
    tree mallow, magnolia, cyclamen, watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove,
    bougainvillea, camellia, mallow, mexican petunia, bromelia, blanket flower, trumpet creeper,
    blackberry lily""".replace("\n", " ").split(",")
)
FLOWER_NAMES = [" ".join(name.split()) for name in FLOWERS]
FLOWERS_CLASSES = ClassNames(
    "Flowers-102", FLOWER_NAMES, {str(number): name for number, name in enumerate(FLOWER_NAMES, start=1)}
)
"""In the order of the original's labels, 1 to 102; copies name classes by these numbers or by words."""

SETS = {"trnid": "train", "valid": "validation", "tstid": "test"}
"""The variables of setid.mat, and what they mean."""


def _flowers(root: Path, note: Note) -> Iterator[Sample]:
    setid = find_below(root, "setid.mat")
    if setid is None:
        yield from from_class_folders(root, note, FLOWERS_CLASSES)
        return
    labels = np.atleast_1d(read_mat(need_below(root, "Flowers-102", "imagelabels.mat", setid))["labels"])
    images = image_folder(root, "Flowers-102", "jpg", setid, "image_00001.jpg")
    sets = read_mat(setid)
    for variable, split in SETS.items():
        for number in np.atleast_1d(sets[variable]).tolist():
            if not 1 <= number <= len(labels):
                raise DataError(f"{setid}: image {number} has no label; imagelabels.mat has {len(labels)}.")
            name = f"image_{number:05d}.jpg"
            label = FLOWERS_CLASSES.names[int(labels[number - 1]) - 1]
            yield labelled(name, str(inside(images, name)), label, split, f"{setid}, image {number}")


def _flowers_copy(row: Row, note: Note) -> Iterator[Sample]:
    for sample in from_copy(row, note, FLOWERS_CLASSES):
        if str(column(row, *LABELS)).isdigit():
            note("the copy numbers its classes; the numbers are read as the labels 1 to 102 of the original")
        yield sample


FLOWERS102 = Benchmark(
    name="flowers102",
    title="Flowers-102",
    task="classification",
    domain="flower",
    licence="not stated",
    source="Nilsback and Zisserman, 2008 (robots.ox.ac.uk/~vgg/data/flowers/102)",
    get="102flowers.tgz, imagelabels.mat and setid.mat from www.robots.ox.ac.uk/~vgg/data/flowers/102/.",
    layout="jpg/image_<5 digits>.jpg, imagelabels.mat and setid.mat, or {train,valid,test}/<1 to 102>/*.jpg",
    sizes={"train": 1020, "validation": 1020, "test": 6149},
    classes=102,
    original=_flowers,
    copy=_flowers_copy,
    hub=("dpdl-benchmark/oxford_flowers102", "nelorth/oxford-flowers"),
)


# Kvasir: endoscopic images of the gastrointestinal tract, eight classes; version 1 (the paper's) or 2.

KVASIR_CLASSES = ClassNames(
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
"""The number of images of a class in version 1; version 2 has 1,000."""

HYPER_KVASIR = ("lower-gi-tract", "upper-gi-tract", "retroflex-stomach", "bbps-0-1", "barretts")
"""Folders that HyperKvasir alone has."""


def _kvasir(root: Path, note: Note) -> Iterable[Sample]:
    if foreign := find_below(root, *HYPER_KVASIR):
        raise DataError(
            f"{foreign} belongs to HyperKvasir, which has 23 other classes and is not Kvasir. Use Kvasir v1 "
            "as --root; to adapt to HyperKvasir, name the folder of its class folders as --data."
        )
    samples = list(from_class_folders(root, note, classes=KVASIR_CLASSES, prefer="kvasir-dataset"))
    if samples and max(Counter(s.label for s in samples).values()) > MOST_IN_V1:
        note("this is Kvasir v2 (1,000 pictures per class); the paper's is v1 (500 per class)")
    return samples


KVASIR = Benchmark(
    name="kvasir",
    title="Kvasir",
    task="classification",
    domain="gastrointestinal endoscopy",
    licence="research and education only",
    source="Pogorelov et al., 2017 (datasets.simula.no/kvasir)",
    get="kvasir-dataset.zip (v1, the paper's) or kvasir-dataset-v2.zip from datasets.simula.no/kvasir.",
    layout="kvasir-dataset/<class>/*.jpg or kvasir-dataset-v2/<class>/*.jpg",
    sizes={"all": 4000},
    classes=8,
    original=_kvasir,
    copy=partial(from_copy, classes=KVASIR_CLASSES),
    refused={
        "SimulaMet-HOST/Kvasir-VQA": "it is another task (questions, not classes)",
        "sahilur/hyper-kvasir-labeled-images": "it is HyperKvasir, with other classes",
    },
)


# PlantVillage: leaves of 14 crops, healthy or diseased, 38 classes.

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
    """A class folder in words: "Tomato___Leaf_Mold" -> "Tomato, leaf mold". Brackets after the crop are
    dropped, and "Pepper,_bell" becomes "Bell pepper". Source: ours."""
    crop, disease = (words(part) for part in folder.split("___"))
    crop = re.sub(r" ?\(.*?\)", "", crop)
    if ", " in crop:
        noun, kind = crop.split(", ")
        crop = f"{kind} {noun}".capitalize()
    return f"{crop}, {disease.lower()}"


PLANT_CLASSES = ClassNames(
    "PlantVillage",
    map(leaf_words, FOLDERS),
    {
        spelling: leaf_words(folder)
        for folder in FOLDERS
        for spelling in (folder, re.sub(r"_\(.*?\)___", "___", folder))
    },
    left_out=("Background_without_leaves", "Background", "x_Removed_from_Healthy_leaves"),
)

LEAF_MAP = "leaf-map.json"
"""The authors' file that says which leaf a picture shows: {name: ["<class>:::<leaf>", ...]}."""

UNGROUPED = "no leaf grouping: images of one leaf may be in training and test"


def leaf_of(name: str, folder: str, leaves: Mapping[str, Sequence[str]]) -> str:
    """The leaf that a picture shows; "" if the map does not say.

    Args:
        name: of the picture's file: "<uuid>___RS_HL 1234.JPG".
        folder: its class folder.
        leaves: the authors' map.

    Source: `determine_leaf_group` of the authors' create_data_distribution.py.
    """
    stem = Path(name).stem.replace("_final_masked", "").rpartition("___")[2].partition("copy")[0]
    entries = leaves.get(stem.strip().lower(), ())
    if len(entries) == 1:
        return entries[0]
    return next((entry for entry in entries if folder in entry), "")


def _plant_village(root: Path, note: Note) -> Iterator[Sample]:
    path = find_below(root, LEAF_MAP) or next(
        (folder / LEAF_MAP for folder in root.absolute().parents[:2] if (folder / LEAF_MAP).is_file()), None
    )  # raw/color as the root
    leaves = read_annotations(path, dict[str, list[str]]) if path is not None else {}
    if path is not None:
        note(f"images of one leaf are in one split, by {path.name}")
    for sample in from_class_folders(root, note, PLANT_CLASSES, "color"):
        parts = sample.id.split("/")
        yield replace(sample, group=leaf_of(parts[-1], parts[-2], leaves))


def _leaf_caveats(samples: Sequence[Sample]) -> list[str]:
    """Says how many pictures have no known leaf, if most have none."""
    known = sum(bool(sample.group) for sample in samples)
    return [] if 2 * known > len(samples) else [f"{UNGROUPED} ({known} of {len(samples)} images have a leaf)"]


PLANT_VILLAGE = Benchmark(
    name="plantvillage",
    title="PlantVillage",
    task="classification",
    domain="plant leaf",
    licence="CC0 at Mendeley; GitHub states none",
    source="Mohanty et al., 2016 (github.com/spMohanty/PlantVillage-Dataset, data.mendeley.com tywbtsjrjv)",
    get="clone github.com/spMohanty/PlantVillage-Dataset, or the zip without augmentation from "
    "data.mendeley.com/datasets/tywbtsjrjv/1.",
    layout="raw/color/<Crop___Disease>/*.JPG, or class folders with these names",
    sizes={"all": 54303},
    classes=38,
    original=_plant_village,
    copy=partial(from_copy, classes=PLANT_CLASSES),
    caveats=_leaf_caveats,
    hub=(
        "Project-AgML/plant_village_classification",
        "BrandonFors/Plant-Diseases-PlantVillage-Dataset",
        "GVJahnavi/PlantVillage_dataset",
    ),
)


# Stanford Cars: 196 models, with make and year.

ANNOTATIONS = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
"""The list of each split. `devkit/cars_test_annos.mat` does not serve: it has no classes."""


class CarNames(ClassNames):
    """Names of cars end with a year, which tells class folders from others."""

    def __contains__(self, spelling: str) -> bool:
        return re.fullmatch(r".+[ _](19|20)\d\d", spelling) is not None

    def find(self, spelling: str, origin: str, note: Note) -> str | None:
        """The name in words; "Ram C-V" of class folders is "Ram C/V"."""
        if spelling not in self:
            return super().find(spelling, origin, note)
        return words(spelling).replace(" C-V ", " C/V ")


CAR_CLASSES = CarNames("Stanford Cars", ())


def _cars(root: Path, note: Note) -> Iterator[Sample]:
    meta = find_below(root, "cars_meta.mat")
    if meta is None:
        yield from from_class_folders(root, note, CAR_CLASSES)
        return
    names = [words(str(name)) for name in np.atleast_1d(read_mat(meta)["class_names"])]
    for split, name in ANNOTATIONS.items():
        path = need_below(root, "Stanford Cars", name, meta)
        folder = image_folder(root, "Stanford Cars", f"cars_{split}", meta, "00001.jpg")
        for number, row in enumerate(np.atleast_1d(read_mat(path)["annotations"]), start=1):
            fields: Any = row
            if "class" not in fields.dtype.names:
                raise DataError(f"{path} has no classes. Use the list with labels, {name}.")
            kind = int(fields["class"])
            if not 1 <= kind <= len(names):
                raise DataError(
                    f"{path}, row {number}: there is no class {kind}; {meta.name} names {len(names)}."
                )
            file = str(fields["fname"])
            origin = f"{path}, row {number}"
            yield labelled(f"{split}/{file}", str(inside(folder, file)), names[kind - 1], split, origin)


STANFORD_CARS = Benchmark(
    name="stanford-cars",
    title="Stanford Cars",
    task="classification",
    domain="car",
    licence="non-commercial research",
    source="Krause et al., 2013 (ai.stanford.edu/~jkrause/cars; gone)",
    get="the original address is gone; use the Kaggle copy (jessicali9530/stanford-cars-dataset) and put "
    "devkit/ and cars_test_annos_withlabels.mat next to it.",
    layout="devkit/{cars_meta.mat, cars_train_annos.mat}, cars_test_annos_withlabels.mat, cars_train/*.jpg "
    "and cars_test/*.jpg, or {train,test}/<class>/*.jpg",
    sizes={"train": 8144, "test": 8041},
    classes=196,
    original=_cars,
    copy=partial(from_copy, classes=CAR_CLASSES),
    hub=("Donghyun99/Stanford-Cars", "tanganke/stanford_cars"),
    refused={"HuggingFaceM4/Stanford-Cars": "it is a loading script, and CRAFT runs no scripts"},
)


# Stanford Dogs: 120 breeds of ImageNet.


def breed(name: str) -> str:
    """The breed in words: "n02085620-Chihuahua" -> "Chihuahua", "toy_terrier" -> "toy terrier"."""
    head, dash, tail = name.partition("-")
    return words(tail if dash and head[:1] == "n" and head[1:].isdigit() else name)


class DogNames(ClassNames):
    """Class folders of dogs begin with a number of WordNet."""

    def __contains__(self, spelling: str) -> bool:
        return re.fullmatch(r"n\d{8}-.+", spelling) is not None

    def find(self, spelling: str, origin: str, note: Note) -> str | None:
        """The breed in words."""
        return super().find(spelling, origin, note) if spelling.isdigit() else breed(spelling)


DOG_CLASSES = DogNames("Stanford Dogs", ())


def _dogs(root: Path, note: Note) -> Iterator[Sample]:
    first = find_below(root, "train_list.mat")
    if first is None:
        folders = class_folders(root, note, DOG_CLASSES)
        if folders and not any(folders.values()):
            raise DataError(
                f"{next(iter(folders))} has the images of Stanford Dogs, but train_list.mat and "
                "test_list.mat, which divide them, are missing. Put lists.tar of "
                "vision.stanford.edu/aditya86/ImageNetDogs/ next to it, unpacked."
            )
        yield from from_class_folders(root, note, DOG_CLASSES)
        return
    files = np.atleast_1d(read_mat(first)["file_list"])
    images = image_folder(root, "Stanford Dogs", "Images", first, str(files[0]))
    for split in ("train", "test"):
        path = first if split == "train" else need_below(root, "Stanford Dogs", "test_list.mat", first)
        for number, file in enumerate(np.atleast_1d(read_mat(path)["file_list"]), start=1):
            folder = str(file).split("/")[0]
            yield labelled(
                str(file), str(inside(images, str(file))), breed(folder), split, f"{path}, row {number}"
            )


STANFORD_DOGS = Benchmark(
    name="stanford-dogs",
    title="Stanford Dogs",
    task="classification",
    domain="dog",
    licence="ImageNet's terms: non-commercial research",
    source="Khosla et al., 2011 (vision.stanford.edu/aditya86/ImageNetDogs)",
    get="images.tar and lists.tar from vision.stanford.edu/aditya86/ImageNetDogs/.",
    layout="Images/<n…-breed>/*.jpg, train_list.mat and test_list.mat, or {train,test}/<n…-breed>/*.jpg",
    sizes={"train": 12000, "test": 8580},
    classes=120,
    original=_dogs,
    copy=partial(from_copy, classes=DOG_CLASSES),
    hub=("Donghyun99/Stanford-Dogs",),
    refused={"Alanox/stanford-dogs": "it is a loading script, and CRAFT runs no scripts"},
)
