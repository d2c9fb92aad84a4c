"""Copies of benchmarks as people have them: other splits, spellings, nesting, fewer classes, cut files."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from craft.core.errors import ConfigError, DataError
from craft.data import BENCHMARKS, Wanted, load_data, prepare, read_data
from craft.data.benchmarks.pictures import FLOWER_NAMES, FOLDERS
from craft.data.splits import file_splits, split_names
from replicas import REPLICAS, class_folders, paint, parquet, png, write

CORRUPTIONS = (
    *("contrast", "gaussian_noise", "impulse_noise", "jpeg_compression", "motion_blur", "pixelate"),
    "spatter",
)
CARS = ["BMW M3 Coupe 2012", "Acura RL Sedan 2012", "Audi TT RS Coupe 2012", "smart fortwo Convertible 2012"]


def hub_cars(root: Path, style: str = "data/{}-00000-of-00001.parquet") -> Path:
    """A hub copy with train, test and seven corrupted copies of the test split."""
    for number, split in enumerate(("train", "test", *CORRUPTIONS)):
        rows = [{"image": png(50 * number + n), "label": n % 4} for n in range(8)]
        parquet(root / style.format(split), rows, {"label": CARS})
    return root


# --- splits with other names


@pytest.mark.parametrize("style", ["data/{}-00000-of-00001.parquet", "default/{}/0000.parquet", "{}.parquet"])
@pytest.mark.parametrize("name", ["stanford-cars", None])
def test_splits_with_unknown_names_never_train(tmp_path: Path, style: str, name: str | None) -> None:
    root = hub_cars(tmp_path / "cars", style)
    data, options = (name, {"root": root, "partial": True}) if name else (root, {})
    with pytest.raises(DataError) as caught:
        load_data(data, **options)
    message = str(caught.value)
    assert all(split in message for split in CORRUPTIONS)
    assert "--splits contrast=none gaussian_noise=none" in message
    alone = load_data(data, splits=["others=none"], **options)
    assert len({s.id for s in alone.all_samples()}) == 16 and len(alone.test) == 8
    more = load_data(data, splits=["contrast=test,spatter=validation", "others=none"], **options)
    assert (len(more.test), len(more.validation)) == (16, 8)
    with pytest.raises(ConfigError, match="--splits takes NAME=SPLIT"):
        load_data(data, splits=["contrast"], **options)
    with pytest.raises(ConfigError, match="--splits takes NAME=SPLIT"):
        load_data(data, splits=["contrast=never"], **options)


def test_prepare_takes_splits_too(tmp_path: Path) -> None:
    root = hub_cars(tmp_path / "cars")
    with pytest.raises(DataError, match="splits that CRAFT does not know: contrast, "):
        prepare("stanford-cars", root, tmp_path / "m", Wanted(partial=True), progress=False)
    wanted = Wanted(partial=True, splits=["others=none"])
    about = prepare("stanford-cars", root, tmp_path / "m", wanted, progress=False).about
    assert about["splits"] == {"train": 8, "test": 8}
    assert about["caveats"] == ["partial: 4 of 196 classes", "partial: 16 of 16185 images"]
    assert load_data(tmp_path / "m").caveats == about["caveats"]


def test_the_hub_is_asked_for_no_split_that_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown splits are named before gigabytes are downloaded."""
    files = [f"data/{split}-00000-of-00001.parquet" for split in ("train", "test", *CORRUPTIONS)]
    wanted: list[list[str]] = []

    def download(*_: object, allow_patterns: list[str], **__: object) -> str:
        wanted.append(allow_patterns)
        return str(hub_cars(tmp_path / "cars"))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: [*files, "README.md"])
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(DataError, match=r"does not know: contrast, .*--splits others=none"):
        prepare("hub:tanganke/stanford_cars", None, tmp_path / "m", Wanted(), progress=False)
    assert wanted == []
    options = Wanted(splits=["others=none"], partial=True)
    prepare("stanford-cars", "hub:tanganke/stanford_cars", tmp_path / "m", options, progress=False)
    assert wanted == [[*sorted(files[:2]), "README.md"]]
    files.append("other/train/0000.parquet")
    with pytest.raises(
        DataError, match=r"several configurations: \., other\. Name one of them: hub:a/b/other"
    ):
        prepare("hub:a/b", None, tmp_path / "n", Wanted(), progress=False)


KNOWN = [
    (("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"), ("train", "train", "test")),
    (
        ("train-00000-of-00001-0fc5e0f0d1a5f6c1", "validation-00000-of-00001-0fc5e0f0d1a5f6c2"),
        ("train", "validation"),
    ),
    (("Train", "TEST", "Val"), ("train", "test", "validation")),
    (("training", "testing", "valid", "dev"), ("train", "test", "validation", "validation")),
    (("train_0", "train_1", "test_0"), ("train", "train", "test")),
    (("train2017", "val2017"), ("train", "validation")),
    (("birds_train", "birds_test"), ("train", "test")),
    (("instances_train2017", "instances_val2017"), ("train", "validation")),
    (("train_images", "test_images"), ("train", "test")),
    (("train-00000-of-00001 (1)", "test-00000-of-00001"), ("train", "test")),
    (("cats", "dogs"), ("", "")),
    (("0000", "0001"), ("", "")),
    (("part-00000-of-00002", "part-00001-of-00002"), ("", "")),
    (("trains", "planes"), ("", "")),
    (("test_v2",), ("test",)),
    (("unlabeled",), ("",)),
]


@pytest.mark.parametrize(("names", "splits"), KNOWN)
def test_names_that_are_read(names: tuple[str, ...], splits: tuple[str, ...]) -> None:
    paths = [Path("data") / f"{name}.parquet" for name in names]
    assert tuple(file_splits(paths, Path("data")).values()) == splits


UNKNOWN = [
    (("train", "test", "test_v2"), "test_v2", "test_v2=test"),
    (
        ("train_clean", "train_noisy", "test"),
        "train_clean, train_noisy",
        "train_clean=train train_noisy=train",
    ),
    (("train_clean", "train_noisy"), "train_clean, train_noisy", "train_clean=train train_noisy=train"),
    (("train", "unlabeled"), "unlabeled", "unlabeled=none"),
    (("train", "test", "extra"), "extra", "extra=none"),
    (("trainval", "test"), "trainval", "trainval=train"),
    (("testA", "testB", "train"), "testA, testB", "testA=test testB=test"),
    (("testmini", "train"), "testmini", "testmini=test"),
    (("train", "my split"), "my split", "'my split=none'"),
    (
        ("contrast-00000-of-00001", "pixelate-00000-of-00001"),
        "contrast, pixelate",
        "contrast=none pixelate=none",
    ),
]


@pytest.mark.parametrize(("names", "listed", "way_out"), UNKNOWN)
def test_names_that_are_asked_about(names: tuple[str, ...], listed: str, way_out: str) -> None:
    paths = [Path("data") / f"{name}.parquet" for name in names]
    with pytest.raises(DataError) as caught:
        file_splits(paths, Path("data"))
    assert f"does not know: {listed}. " in str(caught.value)
    assert f"--splits {way_out}. " in str(caught.value)
    entries = [entry.strip("'") for entry in way_out.replace("my split", "my_split").split(" ")]
    entries = [entry.replace("my_split", "my split") for entry in entries]
    assert set(file_splits(paths, Path("data"), split_names(entries)).values()) <= {"train", "test", "none"}


def test_a_second_download_of_a_shard_is_refused(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001", "train-00000-of-00001 (1)", "test-00000-of-00001"):
        parquet(tmp_path / f"{name}.parquet", [{"image": png(n), "label": "ab"[n % 2]} for n in range(4)])
    with pytest.raises(DataError, match=r"train-00000-of-00001 \(1\)\.parquet is a second copy of"):
        load_data(tmp_path)


def test_unknown_splits_in_a_column(tmp_path: Path) -> None:
    splits = ("train", "test", "Unlabeled", "gaussian_noise")
    rows = [
        {"image": paint(tmp_path / f"{n}.png", n), "label": "ab"[n % 2], "split": splits[n // 4]}
        for n in range(16)
    ]
    rows[8]["label"] = None  # a picture without a class is no mistake where it is not read
    table = tmp_path / "q.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"does not know: Unlabeled, gaussian_noise. .*others=none"):
        load_data(table)
    data = load_data(table, splits=["others=none"], unseen_fraction=0)
    assert len(data.all_samples()) == 8 and len(data.test) == 4
    data = load_data(table, splits=["unlabeled=none", "gaussian_noise=test"], unseen_fraction=0)
    assert len(data.test) == 8


def test_unknown_folders_next_to_train(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "test", "test_noisy")):
        for c, name in enumerate(("ash", "elm")):
            for n in range(4):
                paint(tmp_path / split / name / f"{n}.png", 100 * number + 10 * c + n)
    with pytest.raises(DataError, match=r"does not know: test_noisy. .*--splits test_noisy=test"):
        load_data(tmp_path)
    assert len(load_data(tmp_path, splits=["test_noisy=test"], unseen_fraction=0).test) == 16
    assert len(load_data(tmp_path, splits=["test_noisy=none"], unseen_fraction=0).test) == 8
    paint(tmp_path / "logo" / "x.png", 7)
    with pytest.raises(DataError, match=r"has other folders next to .*: logo\. .*--splits logo=none"):
        load_data(tmp_path, splits=["test_noisy=none"])
    assert load_data(tmp_path, splits=["test_noisy=none", "logo=none"]).train


def test_tables_next_to_those_of_splits_are_named(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "test", "extra")):
        rows = [
            {"image": paint(tmp_path / f"{name}{n}.png", 9 * number + n), "label": "ab"[n % 2]}
            for n in range(4)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_data(tmp_path, unseen_fraction=0)
    assert len(data.all_samples()) == 8
    assert (
        data.notes[-1].startswith("not read: extra.jsonl, because")
        and "--splits extra=train" in data.notes[-1]
    )
    assert len(load_data(tmp_path, splits=["extra=train"], unseen_fraction=0).all_samples()) == 12


# --- a part of a benchmark


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("eurosat", "5 of 10"),
        ("kvasir", "5 of 8"),
        ("plantvillage", "5 of 38"),
        ("flowers102", "5 of 102"),
        ("stanford-cars", "5 of 196"),
        ("stanford-dogs", "5 of 120"),
    ],
)
def test_fewer_classes_need_consent(tmp_path: Path, name: str, missing: str) -> None:
    root = REPLICAS[name](tmp_path)
    with pytest.raises(DataError, match=f"has only {missing} classes of .* use --partial"):
        load_data(name, root=root)
    assert load_data(name, root=root, partial=True).caveats[0] == f"partial: {missing} classes"


def test_far_fewer_pictures_are_said(tmp_path: Path) -> None:
    words = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture")
    words += ("PermanentCrop", "Residential", "River", "SeaLake")
    class_folders(tmp_path, words, each=2)
    assert load_data("eurosat", root=tmp_path).caveats == ["partial: 20 of 27000 images"]
    assert load_data("ocr-vqa", root=REPLICAS["ocr-vqa"](tmp_path / "o")).caveats == [
        "partial: 18 of 207549 images"
    ]
    assert load_data("iconqa", root=REPLICAS["iconqa"](tmp_path / "i")).caveats == [
        "partial: 20 of 31578 questions"
    ]


def test_hyper_kvasir_is_not_kvasir(tmp_path: Path) -> None:
    tract = tmp_path / "labeled-images" / "lower-gi-tract"
    class_folders(tract / "therapeutic-interventions", ("dyed-lifted-polyps", "dyed-resection-margins"))
    class_folders(tract / "pathological-findings", ("polyps", "ulcerative-colitis-grade-1"))
    with pytest.raises(DataError, match="HyperKvasir, which has 23 other classes"):
        load_data("kvasir", root=tmp_path, partial=True)
    with pytest.raises(DataError, match="has only 2 of 8 classes of Kvasir"):
        load_data("kvasir", root=tract / "therapeutic-interventions")


def test_more_classes_than_the_benchmark_has(tmp_path: Path) -> None:
    for split in ("train", "test"):
        class_folders(tmp_path / split, [f"Car {n} 2012" for n in range(197)], each=1)
    with pytest.raises(DataError, match="it has 197 classes, and Stanford Cars has 196"):
        load_data("stanford-cars", root=tmp_path, partial=True)


# --- numbers for classes


def test_flowers_by_the_numbers_of_the_original(tmp_path: Path) -> None:
    """nelorth/oxford-flowers: class i of the file is the i-th number as text: '1', '10', '100', '101', ..."""
    numbers = sorted(map(str, range(1, 103)))
    for split, copies in (("train", 2), ("test", 1)):
        rows = [{"image": png(n), "label": n % 102} for n in range(102 * copies)]
        parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", rows, {"label": numbers})
    raw = BENCHMARKS["flowers102"].load(tmp_path)
    assert [s.label for s in raw.samples[:4]] == [FLOWER_NAMES[n - 1] for n in (1, 10, 100, 101)]
    assert raw.samples[0].label == "pink primrose" and raw.samples[101].label == FLOWER_NAMES[98]
    assert {s.label for s in raw.samples} == set(FLOWER_NAMES) and "numbers its classes" in raw.notes[0]
    assert raw.caveats == ["partial: 306 of 8189 images"]


@pytest.mark.parametrize("form", ["{}", "{:03d}"])
def test_flowers_in_numbered_folders(tmp_path: Path, form: str) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        for label in (1, 10, 77, 102):
            for n in range(2):
                paint(
                    tmp_path / "flower_data" / split / form.format(label) / f"{n}.jpg",
                    1000 * number + 10 * label + n,
                )
    data = load_data("flowers102", root=tmp_path, partial=True, unseen_fraction=0)
    assert data.classes == ("blackberry lily", "globe thistle", "passion flower", "pink primrose")
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 8, 8)
    (tmp_path / "flower_data" / "train" / form.format(1)).rename(tmp_path / "flower_data" / "train" / "0")
    with pytest.raises(DataError, match="'0' is not a class of Flowers-102"):  # numbered from zero
        load_data("flowers102", root=tmp_path, partial=True)


# --- folders


@pytest.mark.parametrize("top", ["", "archive", "car_data/car_data"])
def test_copies_divided_by_folders(tmp_path: Path, top: str) -> None:
    for split, shift in (("train", 0), ("test", 100)):
        class_folders(tmp_path / top / split, ["Ram C-V Cargo Van Minivan 2012", *CARS], each=2)
        for path in (tmp_path / top / split).rglob("*.jpg"):
            paint(path, shift + len(path.parent.name) + int(path.stem[-1]))
    data = load_data("stanford-cars", root=tmp_path, partial=True, unseen_fraction=0)
    assert (len(data.train) + len(data.validation), len(data.test)) == (10, 10)
    assert "Ram C/V Cargo Van Minivan 2012" in data.classes
    for name, classes in (("eurosat", ("River", "Forest")), ("kvasir", ("polyps", "esophagitis"))):
        for number, split in enumerate(("train", "Val", "test")):
            class_folders(tmp_path / name / top / split, classes, each=3 - (number > 0))
        data = load_data(name, root=tmp_path / name, partial=True, unseen_fraction=0)
        assert (len(data.train), len(data.validation), len(data.test)) == (6, 4, 4)


@pytest.mark.parametrize("below", ["{}/{}", "{}/images", "data/{}/a"])
def test_splits_by_a_folder_further_up(tmp_path: Path, below: str) -> None:
    for number, split in enumerate(("train", "test")):
        class_folders(tmp_path / below.format(split, split), ("River", "Forest"), each=4 - number)
    data = load_data("eurosat", root=tmp_path, partial=True, unseen_fraction=0)
    assert (len(data.train) + len(data.validation), len(data.test)) == (8, 6)


def test_class_folders_of_dogs(tmp_path: Path) -> None:
    root = REPLICAS["stanford-dogs"](tmp_path)
    for name in ("train_list.mat", "test_list.mat"):
        (root / name).unlink()
    with pytest.raises(
        DataError, match=r"train_list\.mat and test_list\.mat, which divide them, are missing"
    ):
        load_data("stanford-dogs", root=root, partial=True)
    shutil.copytree(root / "Images", root / "split" / "train")
    (root / "Images").rename(root / "split" / "test")
    data = load_data("stanford-dogs", root=root, partial=True, unseen_fraction=0)
    assert len(data.test) == 25 and "Shih-Tzu" in data.classes


def test_an_unknown_split_of_a_copy_by_folders(tmp_path: Path) -> None:
    for split in ("train", "test", "noisy"):
        class_folders(tmp_path / split, ("River", "Forest"), each=2)
    with pytest.raises(DataError, match=r"does not know: noisy. .*--splits noisy=none"):
        load_data("eurosat", root=tmp_path, partial=True)
    data = load_data("eurosat", root=tmp_path, partial=True, splits=["noisy=none"], unseen_fraction=0)
    assert len(data.test) == 4 and len(data.train) + len(data.validation) == 4


def test_pictures_outside_class_folders_are_said(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", ("River", "Forest"))
    for n in range(3):
        paint(tmp_path / "test" / "test" / f"{n}.jpg", n)
    data = load_data("eurosat", root=tmp_path, partial=True)
    assert data.notes == [f"not read: 3 images in {tmp_path / 'test'}, which are not in class folders"]


def test_names_in_another_case_and_second_downloads(tmp_path: Path) -> None:
    moves = {
        "flowers102": {"jpg": "JPG", "setid.mat": "setid (1).mat", "imagelabels.mat": "ImageLabels.mat"},
        "stanford-dogs": {
            "Images": "images",
            "train_list.mat": "Train_List.MAT",
            "test_list.mat": "test_list(2).mat",
        },
        "vqa-rad": {
            "VQA_RAD Dataset Public.json": "VQA_RAD_Dataset_Public.json",
            "VQA_RAD Image Folder": "vqa_rad image folder",
        },
        "ocr-vqa": {"images": "Images", "dataset.json": "dataset (3).json"},
        "scienceqa": {"images": "IMAGES", "problems.json": "problems copy.json"},
        "stanford-cars": {
            "cars_test_annos_withlabels.mat": "cars_test_annos_withlabels (1).mat",
            "cars_train": "Cars_Train",
        },
    }
    for name, renamed in moves.items():
        root = REPLICAS[name](tmp_path / name)
        before = [(s.id, s.label, s.question) for s in BENCHMARKS[name].load(root, partial=True).samples]
        for old, new in renamed.items():
            (root / old).rename(root / new)
        samples = BENCHMARKS[name].load(root, partial=True).samples
        assert [(s.id, s.label, s.question) for s in samples] == before, name
        assert all(Path(str(s.image)).is_file() for s in samples), name


def test_picture_files_in_another_case(tmp_path: Path) -> None:
    root = REPLICAS["flowers102"](tmp_path)
    for path in list((root / "jpg").iterdir()):
        path.rename(path.with_suffix(".JPG"))
    samples = BENCHMARKS["flowers102"].load(root, partial=True).samples
    assert all(Path(str(s.image)).is_file() for s in samples)
    assert samples[0].id == "image_00001.jpg"


def test_two_downloads_of_one_file_are_asked_about(tmp_path: Path) -> None:
    root = REPLICAS["flowers102"](tmp_path)
    (root / "setid.mat").rename(root / "setid (1).mat")
    shutil.copy(root / "setid (1).mat", root / "setid (2).mat")
    with pytest.raises(
        DataError, match=r"2 files for setid\.mat: setid \(1\)\.mat, setid \(2\)\.mat\. Rename"
    ):
        load_data("flowers102", root=root, partial=True)


@pytest.mark.parametrize(
    ("name", "folder", "nested"),
    [
        ("flowers102", "jpg", "jpg/jpg"),
        ("stanford-dogs", "Images", "images/Images"),
        ("vqa-rad", "VQA_RAD Image Folder", "VQA_RAD Image Folder/VQA_RAD Image Folder"),
        ("ocr-vqa", "images", "images/images"),
        ("scienceqa", "images", "images/images"),
        ("stanford-cars", "cars_test/cars_test", "cars_test"),
        ("iconqa", "iconqa_data/iconqa", "iconqa_data/iconqa/iconqa"),
    ],
)
def test_a_folder_more_or_less(tmp_path: Path, name: str, folder: str, nested: str) -> None:
    root = REPLICAS[name](tmp_path)
    (root / folder).rename(tmp_path / "moving")
    if (root / nested).is_dir():
        (root / nested).rmdir()
    (root / nested).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "moving").rename(root / nested)
    samples = BENCHMARKS[name].load(root, partial=True).samples
    assert samples and all(Path(str(s.image)).is_file() for s in samples)


def test_plant_village_twice_in_one_folder(tmp_path: Path) -> None:
    """Kaggle's copy has itself inside itself, with single underscores in its names."""
    names = ("Tomato_Leaf_Mold", "Pepper__bell___healthy", "Tomato__Tomato_YellowLeaf__Curl_Virus")
    class_folders(tmp_path / "PlantVillage", names, ending=".JPG")
    shutil.copytree(tmp_path / "PlantVillage", tmp_path / "PlantVillage" / "PlantVillage")
    for root in (tmp_path, tmp_path / "PlantVillage", tmp_path / "PlantVillage" / "PlantVillage"):
        data = load_data("plantvillage", root=root, partial=True)
        assert len(data.classes) == 3 and len({s.image for s in data.all_samples()}) <= 15
        assert sum("has the same files" in note for note in data.notes) == (
            root.parent.name != "PlantVillage"
        )
    paint(tmp_path / "PlantVillage" / "PlantVillage" / names[0] / "more.JPG", 77)
    with pytest.raises(DataError, match=r"contains PlantVillage 2 times: .*--root"):
        load_data("plantvillage", root=tmp_path, partial=True)


def test_folders_next_to_the_classes(tmp_path: Path) -> None:
    class_folders(tmp_path, FOLDERS[:4], ending=".JPG")
    paint(tmp_path / "x_Removed_from_Healthy_leaves" / "1.JPG", 5)
    (tmp_path / "__MACOSX" / "Apple").mkdir(parents=True)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("1")
    data = load_data("plantvillage", root=tmp_path, partial=True)
    assert len(data.classes) == 4 and len(data.all_samples()) <= 20
    paint(tmp_path / "Banana___rot" / "1.JPG", 6)
    with pytest.raises(DataError, match=r"'Banana___rot' is not a class of PlantVillage\. .*move it away"):
        load_data("plantvillage", root=tmp_path, partial=True)


def test_pictures_one_folder_below_their_class(tmp_path: Path) -> None:
    class_folders(tmp_path, ("River", "Forest"), each=2)
    paint(tmp_path / "River" / "part2" / "River_9.jpg", 9)
    assert len(read_data("eurosat", tmp_path, partial=True).samples) == 5


# --- leaves


def leaves(root: Path, map: dict[str, list[str]] | None) -> Path:
    """Pictures of leaves as the authors name them, four of each leaf."""
    for c, folder in enumerate(FOLDERS[:3]):
        for n in range(24):
            paint(
                root / "raw" / "color" / folder / f"{c:08x}-{n:04x}___RS_{'ABC'[c]} {n:04d}.JPG", 100 * c + n
            )
    if map is not None:
        write(root / "leaf-map.json", map)
    return root


LEAVES = {
    f"rs_{'abc'[c]} {n:04d}": [f"{folder}:::{n // 4}.0"]
    for c, folder in enumerate(FOLDERS[:3])
    for n in range(24)
}


def test_a_leaf_is_not_divided(tmp_path: Path) -> None:
    data = load_data("plantvillage", root=leaves(tmp_path, LEAVES), partial=True, unseen_fraction=0)
    sides = [{s.group for s in part} for part in (data.train, data.validation, data.test)]
    assert all(side and "" not in side for side in sides)
    assert not sides[0] & sides[2] and not sides[0] & sides[1] and not sides[1] & sides[2]
    assert Counter(s.label for s in data.test).total() >= 12 and len({s.label for s in data.test}) == 3
    assert "images of one leaf are in one split, by leaf-map.json" in data.notes
    assert not any("leaf grouping" in caveat for caveat in data.caveats)
    below = load_data("plantvillage", root=tmp_path / "raw" / "color", partial=True, unseen_fraction=0)
    assert {s.id for s in below.test} == {s.id for s in data.test}
    prepare("plantvillage", tmp_path, tmp_path / "m", Wanted(partial=True), progress=False)
    assert {s.group for s in load_data(tmp_path / "m", unseen_fraction=0).test} == sides[2]


def test_without_the_authors_map_every_report_says_so(tmp_path: Path) -> None:
    data = load_data("plantvillage", root=leaves(tmp_path, None), partial=True)
    assert data.caveats[-1] == (
        "no leaf grouping: images of one leaf may be in training and test (0 of 72 images have a leaf)"
    )


def test_a_leaf_of_two_classes_is_that_of_the_folder(tmp_path: Path) -> None:
    twice = LEAVES | {
        "rs_a 0000": [f"{FOLDERS[1]}:::9.0", f"{FOLDERS[0]}:::7.0"],
        "rs_a 0001": ["Other:::3.0"],
    }
    raw = read_data("plantvillage", leaves(tmp_path, twice), partial=True)
    groups = [s.group for s in raw.samples[:3]]
    assert groups == [f"{FOLDERS[0]}:::7.0", "Other:::3.0", f"{FOLDERS[0]}:::0.0"]


def test_groups_of_a_table_stay_together(tmp_path: Path) -> None:
    rows = [
        {"image": paint(tmp_path / f"{n}.png", n), "label": "ab"[n % 2], "group": f"patient {n // 4}"}
        for n in range(80)
    ]
    table = tmp_path / "q.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in (0, 1):
        data = load_data(table, unseen_fraction=0, seed=seed, split_seed=seed)
        parts = [{s.group for s in part} for part in (data.train, data.validation, data.test)]
        assert all(parts) and len(set.union(*parts)) == sum(map(len, parts)) == 20


# --- covers


def test_truncated_covers_are_left_out_and_counted(tmp_path: Path) -> None:
    root = REPLICAS["ocr-vqa"](tmp_path)
    for number, name in enumerate(("0000000000.jpg", "0000000001.jpg")):
        paint(root / "images" / name, number, size=64)
        content = (root / "images" / name).read_bytes()
        (root / "images" / name).write_bytes(content[: len(content) // 2])
    paint(root / "images" / "0000000002.png", 3, size=64)
    (root / "images" / "0000000002.jpg").unlink()
    cut = (root / "images" / "0000000002.png").read_bytes()
    (root / "images" / "0000000002.png").write_bytes(cut[:-40])
    (root / "images" / "0000000006.jpg").write_bytes(b"")
    whole = root / "images" / "0000000007.jpg"
    whole.write_bytes(whole.read_bytes() + b"\0" * 200)  # padded, but complete
    data = load_data("ocr-vqa", root=root)
    assert data.notes == [
        "left out: 6 of 20 books without a usable cover (1 missing, 2 files that are not pictures, 3 "
        "truncated; many of the addresses are dead)"
    ]
    assert any(s.image == str(whole) for s in data.train)
