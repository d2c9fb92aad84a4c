"""The ten benchmarks, read from tiny replicas in their original layouts and as hub copies, traps included."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from craft.core.errors import DataError
from craft.data import BENCHMARKS, Wanted, load_data, prepare, verify_images
from craft.data.benchmarks.pictures import FOLDERS, breed, leaf_words
from replicas import REPLICAS, paint, parquet, png, write

COUNTS = {  # training, validation, test samples as found; None: drawn by us
    "iconqa": (12, 3, 5),
    "ocr-vqa": (20, 4, 12),
    "scienceqa": (12, 3, 5),
    "vqa-rad": (16, 0, 4),
    "eurosat": (25, None, None),
    "flowers102": (10, 3, 7),
    "kvasir": (25, None, None),
    "plantvillage": (25, None, None),
    "stanford-cars": (10, 0, 10),
    "stanford-dogs": (15, 0, 10),
}


def test_all_ten_are_there() -> None:
    assert list(BENCHMARKS) == list(REPLICAS) == list(COUNTS)
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name and benchmark.licence and benchmark.get.endswith(".")
        assert (benchmark.classes > 0) == (benchmark.task == "classification")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_original_layout(name: str, tmp_path: Path) -> None:
    root = REPLICAS[name](tmp_path)
    benchmark = BENCHMARKS[name]
    raw = benchmark.load(root, partial=True)
    train, validation, test = COUNTS[name]
    found = Counter(sample.split or "train" for sample in raw.samples)
    assert (
        found["train"] == train and found["validation"] == (validation or 0) and found["test"] == (test or 0)
    )
    assert len({sample.id for sample in raw.samples}) == len(raw.samples)
    data = load_data(name, root=root, partial=True)
    assert (data.name, data.task, data.licence) == (name, benchmark.task, benchmark.licence)
    assert data.train and data.validation and data.test
    assert verify_images(data, progress=False) > 0
    if data.task == "classification":
        assert len(data.classes) == 5 and len(data.held_out) == 1
        assert all(sample.answer in sample.choices for sample in data.test)
        assert (
            data.train[0].texts()[0] == f"An image of a {data.domain}, specifically a {data.train[0].label}."
        )
    moved = REPLICAS[name](tmp_path / "elsewhere")
    assert [s.id for s in load_data(name, root=moved, partial=True).test] == [s.id for s in data.test]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_is_missing_and_how_to_get_it(name: str, tmp_path: Path) -> None:
    benchmark = BENCHMARKS[name]
    with pytest.raises(DataError, match=r"needs a folder: --root DIR\. To get it: "):
        load_data(name)
    with pytest.raises(DataError) as caught:
        load_data(name, root=tmp_path)
    assert str(caught.value) == (
        f"{benchmark.title} is not in {tmp_path}. Expected {benchmark.layout}. {benchmark.how_to_get()}"
    )
    with pytest.raises(DataError, match=r"no-such does not exist\. To get it: "):
        load_data(name, root=tmp_path / "no-such")


# --- the traps, one by one


def test_iconqa_reads_one_sub_task(tmp_path: Path) -> None:
    data = load_data("iconqa", root=REPLICAS["iconqa"](tmp_path), answer_with="letter")
    assert {s.choices for s in data.test} == {("square", "circle"), ("square", "circle", "triangle")}
    assert data.test[1].prompt().endswith("\nA. square\nB. circle\nC. triangle\nAnswer in one letter only.")
    assert data.test[1].answer == "B" and data.test[1].answer_text == "circle"


def test_ocr_vqa_leaves_dead_covers_out_and_says_so(tmp_path: Path) -> None:
    data = load_data("ocr-vqa", root=REPLICAS["ocr-vqa"](tmp_path))
    (note,) = data.notes
    assert note.startswith("left out: 2 of 20 books without a usable cover (1 missing, 1 files that")
    assert len({s.image for s in data.train}) == 10 and len(data.train) == 20  # the GIF is one of them


def test_the_training_subset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = REPLICAS["ocr-vqa"](tmp_path)
    monkeypatch.setitem(BENCHMARKS["ocr-vqa"].__dict__, "train_limit", 4)  # pyright: ignore
    data = load_data("ocr-vqa", root=root)
    assert len({s.image for s in data.train}) == 4 and len(data.train) == 8 and len(data.test) == 12
    assert [s.id for s in load_data("ocr-vqa", root=root, seed=5).train] == [s.id for s in data.train]


def test_scienceqa_needs_pictures_and_keeps_hints(tmp_path: Path) -> None:
    data = load_data("scienceqa", root=REPLICAS["scienceqa"](tmp_path))
    assert data.notes == ["left out: 3 questions without a picture"]
    assert data.train[1].question == "The picture shows a model.\nWhich is it?"
    assert data.train[0].captions == ("a ball and a stick",)
    assert {len(s.choices) for s in data.train} == {2, 3, 4, 5}


def test_vqa_rad_knows_open_from_closed(tmp_path: Path) -> None:
    data = load_data("vqa-rad", root=REPLICAS["vqa-rad"](tmp_path / "original"))
    assert Counter(s.kind for s in data.all_samples()) == {"open": 10, "closed": 10}
    assert {s.answer for s in data.all_samples()} == {"Yes", "no", "3", "4", "5", "6", "7"}
    rows = [{"image": png(n), "question": "q?", "answer": ("yes", "a mass")[n % 2]} for n in range(6)]
    parquet(tmp_path / "copy" / "data" / "train-00000-of-00001.parquet", rows)
    parquet(tmp_path / "copy" / "data" / "test-00000-of-00001.parquet", rows[:2])
    copy = load_data("vqa-rad", root=tmp_path / "copy")
    assert Counter(s.kind for s in copy.all_samples()) == {"open": 4, "closed": 4} and len(copy.test) == 2
    assert "has no answer_type" in copy.notes[0]


def test_plant_village_words_renderings_and_39th_class(tmp_path: Path) -> None:
    data = load_data("plantvillage", root=REPLICAS["plantvillage"](tmp_path), partial=True)
    assert data.classes == (
        "Apple, apple scab",
        "Bell pepper, healthy",
        "Corn, common rust",
        "Grape, esca (black measles)",
        "Tomato, spider mites two-spotted spider mite",
    )
    assert all("/color/" in str(s.image) for s in data.all_samples())
    assert data.notes == [
        "left out: images of 'Background_without_leaves', which is not one of the 38 classes"
    ]
    assert len({leaf_words(folder) for folder in FOLDERS}) == 38
    with pytest.raises(DataError, match=r"PlantVillage 3 times: .*--root"):
        REPLICAS["kvasir"](tmp_path)  # something else beside it does not matter
        (tmp_path / "raw" / "color").rename(tmp_path / "raw" / "colour")
        (tmp_path / "raw" / "segmented").rename(tmp_path / "elsewhere")
        load_data("plantvillage", root=tmp_path, partial=True)


def test_copies_that_order_or_spell_classes_otherwise_agree(tmp_path: Path) -> None:
    """Numbers are read through the names that each copy gives them."""
    spelled = {
        "one": ["AnnualCrop", "Forest", "Industrial", "SeaLake"],
        "two": ["Sea Lake", "Industrial Buildings", "Forest", "Annual Crop"],
    }
    words = ["annual crop", "forest", "industrial buildings", "sea or lake"]
    for copy, names in spelled.items():
        order = range(4) if copy == "one" else range(3, -1, -1)
        rows = [{"image": png(n), "label": k} for n, k in enumerate(list(order) * 3)]
        parquet(tmp_path / copy / "data" / "train-00000-of-00001.parquet", rows, {"label": names})
        assert [
            s.label for s in BENCHMARKS["eurosat"].load(tmp_path / copy, partial=True).samples
        ] == words * 3
    assert verify_images(load_data("eurosat", root=tmp_path / "one", partial=True), progress=False) == 12


def test_class_names_in_the_card_of_a_copy(tmp_path: Path) -> None:
    parquet(
        tmp_path / "default" / "train" / "0000.parquet", [{"image": png(n), "label": n % 2} for n in range(6)]
    )
    with pytest.raises(
        DataError, match=r"row 1: the label 0 is not a name, and the order of classes differs"
    ):
        load_data("flowers102", root=tmp_path, partial=True)
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype:\n"
        "      class_label:\n        names:\n          '0': Colts foot\n          '1': barberton daisy\n"
        "---\n# x\n"
    )
    assert load_data("flowers102", root=tmp_path, partial=True).classes == ("barbeton daisy", "colt's foot")
    card = (tmp_path / "README.md").read_text()
    for number in (0, 1):
        card = card.replace(f"'{number}': ", "- ")
    (tmp_path / "README.md").write_text(card)
    assert load_data("flowers102", root=tmp_path, partial=True).classes == ("barbeton daisy", "colt's foot")


def test_flowers_labels_are_names_from_one(tmp_path: Path) -> None:
    data = load_data("flowers102", root=REPLICAS["flowers102"](tmp_path), unseen_fraction=0, partial=True)
    assert data.classes == (
        "blackberry lily",
        "hard-leaved pocket orchid",
        "passion flower",
        "pink primrose",
        "sunflower",
    )
    assert next(s for s in data.all_samples() if s.id == "image_00003.jpg").label == "passion flower"
    assert all(Path(str(s.image)).name == s.id for s in data.all_samples())


def test_cars_need_the_list_with_labels(tmp_path: Path) -> None:
    root = REPLICAS["stanford-cars"](tmp_path)
    data = load_data("stanford-cars", root=root, partial=True)
    assert "Ram C/V Cargo Van Minivan 2012" in data.classes
    (root / "cars_test_annos_withlabels.mat").rename(root / "devkit" / "cars_test_annos.mat")
    with pytest.raises(DataError, match=r"cars_test_annos_withlabels\.mat is missing"):
        load_data("stanford-cars", root=root, partial=True)


def test_dogs_are_words(tmp_path: Path) -> None:
    assert [breed(n) for n in ("n02086240-Shih-Tzu", "toy_terrier", "Shih-Tzu")] == [
        "Shih-Tzu",
        "toy terrier",
        "Shih-Tzu",
    ]
    data = load_data("stanford-dogs", root=REPLICAS["stanford-dogs"](tmp_path), partial=True)
    assert "standard poodle" in data.classes and "Shih-Tzu" in data.classes
    assert not {s.image for s in data.train} & {s.image for s in data.test}


def test_kvasir_v2_is_told_from_v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    REPLICAS["kvasir"](tmp_path)
    (tmp_path / "kvasir-dataset").rename(tmp_path / "kvasir-dataset-v2")
    monkeypatch.setattr("craft.data.benchmarks.pictures.MOST_IN_V1", 4)
    assert "Kvasir v2" in load_data("kvasir", root=tmp_path, partial=True).notes[0]


@pytest.mark.parametrize(
    ("name", "place", "words"),
    [
        ("stanford-cars", "hub:HuggingFaceM4/Stanford-Cars", "is a loading script"),
        ("stanford-dogs", "hub:Alanox/stanford-dogs", "is a loading script"),
        ("kvasir", "hub:SimulaMet-HOST/Kvasir-VQA", "is another task"),
    ],
)
def test_hub_copies_that_cannot_be_used(name: str, place: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"the hub copy .* cannot be used: .*{words}.* To get it: "):
        prepare(name, place, tmp_path / "m", progress=False)


def cached(home: Path, id: str) -> Path:
    """The folder of a data set in a hub cache made by hand."""
    place = home / f"datasets--{id.replace('/', '--')}"
    commit = "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True)
    return place / "snapshots" / commit


def test_a_hub_copy_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = cached(tmp_path, "timm/eurosat-rgb")
    names = {"label": ["AnnualCrop", "Forest", "River"]}
    rows = [{"image": png(n), "label": n % 3, "image_id": f"x{n}"} for n in range(12)]
    parquet(folder / "data" / "train-00000-of-00001.parquet", rows, names)
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows[:3], names)
    with pytest.raises(DataError) as caught:
        load_data("eurosat", root="hub:timm/eurosat-rgb")
    assert "`craft data prepare eurosat --root hub:timm/eurosat-rgb`" in str(caught.value)
    prepare("eurosat", "hub:timm/eurosat-rgb", tmp_path / "m", Wanted(partial=True), progress=False)
    data = load_data(tmp_path / "m")
    assert data.classes == ("annual crop", "forest", "river") and len(data.test) == 3
    script = cached(tmp_path, "someone/pictures")
    (script / "pictures.py").write_text("class Builder: ...")
    for name, words in (
        ("hub:someone/pictures", r"is a loading script \(pictures\.py\) without data files"),
        ("hub:nobody/nothing", "is not in the local cache, and the hub cannot be reached"),
        ("hub:nobody", r"'hub:nobody'.*Write hub:OWNER/NAME"),
        ("hub:no body/x", "'no body/x' cannot be a data set of the hub"),
    ):
        with pytest.raises(DataError, match=words):
            prepare(name, None, tmp_path / "n", progress=False)

    def no_network(*_: object, **__: object) -> None:
        raise RuntimeError("Connection refused")  # of no type that hubs of all versions share

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", no_network)
    with pytest.raises(DataError, match="cannot be reached for timm/eurosat-rgb: Connection refused"):
        prepare("eurosat", "hub:timm/eurosat-rgb", tmp_path / "n", progress=False)


def test_several_configurations_must_be_told_apart(tmp_path: Path) -> None:
    for name in ("ScienceQA-FULL", "ScienceQA-IMG"):
        rows = [
            {
                "image": png(n) if n else None,
                "question": "q?",
                "choices": ["a", "b"],
                "answer": n % 2,
                "hint": "",
            }
            for n in range(4)
        ]
        for split in ("train", "test"):
            parquet(tmp_path / name / f"{split}-00000-of-00001.parquet", rows)
    with pytest.raises(DataError, match="several configurations of ScienceQA: ScienceQA-FULL, ScienceQA-IMG"):
        load_data("scienceqa", root=tmp_path)
    data = load_data("scienceqa", root=tmp_path / "ScienceQA-IMG")
    assert data.notes == ["left out: questions without a picture"] and len(data.test) == 3
    assert verify_images(data, progress=False) == 6


COPIES: dict[str, tuple[dict[str, Any], list[str], set[str]]] = {
    # columns besides the image, class names in the file's own order, what questions and labels then hold
    "ocr-vqa": (
        {"image_id": "0123", "questions": ["Who wrote it?", "What is it?"], "answers": ["Ann", "a novel"]},
        [],
        {"Who wrote it?", "What is it?"},
    ),
    "scienceqa": (
        {
            "question": "Which?",
            "choices": ["ice", "fire"],
            "answer": 1,
            "hint": "Look.",
            "task": "closed choice",
        },
        [],
        {"Look.\nWhich?"},
    ),
    "plantvillage": (
        {"label": 0},
        ["Tomato___healthy", "Background_without_leaves", "Pepper,_bell___Bacterial_spot"],
        {"Tomato, healthy", "Bell pepper, bacterial spot"},
    ),
    "stanford-cars": (
        {"label": 0},
        ["BMW M3 Coupe 2012", "Acura_RL_Sedan 2012"],
        {"BMW M3 Coupe 2012", "Acura RL Sedan 2012"},
    ),
    "stanford-dogs": ({"label": 0}, ["n02087046-toy_terrier", "Shih-Tzu"], {"toy terrier", "Shih-Tzu"}),
    "kvasir": ({"label": 0}, ["polyps", "normal-z-line"], {"polyps", "normal z-line"}),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_hub_copy_in_its_own_columns(name: str, tmp_path: Path) -> None:
    columns, names, wanted = COPIES[name]
    for split, count in (("train", 6), ("test", 3)):
        rows = [{"image": png(n), **columns} for n in range(count)]
        for n, row in enumerate(rows):
            row |= {"label": n % len(names)} if names else {}
            row |= {"image_id": f"{n}"} if "image_id" in columns else {}
            row |= {"answer": n % 2} if "answer" in columns else {}
        place = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        parquet(place, rows, {"label": names} if names else None)
    data = load_data(name, root=tmp_path, unseen_fraction=0, partial=True)
    assert {s.label or s.question for s in data.all_samples()} == wanted
    assert data.test and verify_images(data, progress=False) in (6, 9)
    if name == "plantvillage":
        assert data.notes == [
            "left out: images of 'Background_without_leaves', which is not one of the 38 classes"
        ]


def test_the_hub_copy_of_iconqa_has_its_options_in_one_text(tmp_path: Path) -> None:
    rows = [
        {
            "question_id": str(n),
            "question": "What?",
            "choices": "square, circle",
            "answer": "circle",
            "query_image": png(n),
            "ques_type": ("choose_txt", "fill_in_blank")[n % 2],
        }
        for n in range(6)
    ]
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
    raw = BENCHMARKS["iconqa"].load(tmp_path)
    assert [s.choices for s in raw.samples] == [("square", "circle")] * 3 and raw.samples[0].correct == 1
    assert raw.notes == ["the hub copy has no training split; training needs the original zip"]


@pytest.mark.parametrize(
    ("choices", "answer", "options"),
    [
        ("red,blue, dark,1, 2 or 3", "blue, dark", ("red", "blue, dark", "1, 2 or 3")),
        ("red,blue, dark", "red", ("red", "blue, dark")),
        ("red, blue", "0", ("red", "blue")),
        ("red, blue, dark", "blue, dark", None),
        ("1,000,2,000", "2,000", None),
    ],
)
def test_options_of_the_iconqa_copy_with_a_comma_inside(
    tmp_path: Path, choices: str, answer: str, options: tuple[str, ...] | None
) -> None:
    row = {"question": "What?", "query_image": png(1), "ques_type": "choose_txt"}
    rows = [row | {"question_id": "1", "choices": choices, "answer": answer}]
    rows.append(row | {"question_id": "2", "choices": "square,circle", "answer": "circle"})
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
    raw = BENCHMARKS["iconqa"].load(tmp_path)
    assert [s.choices for s in raw.samples] == [*([options] if options else []), ("square", "circle")]
    assert ("left out: questions whose options cannot be told" in " ".join(raw.notes)) == (options is None)


@pytest.mark.parametrize(
    ("name", "file", "damage", "words"),
    [
        (
            "iconqa",
            "iconqa_data/pid_splits.json",
            None,
            r"IconQA: .*problems\.json exists, but pid_splits\.json",
        ),
        ("iconqa", "iconqa_data/problems.json", "{", "problems.json is not JSON"),
        ("scienceqa", "pid_splits.json", None, "pid_splits.json is missing"),
        ("flowers102", "imagelabels.mat", None, "imagelabels.mat is missing"),
        ("flowers102", "setid.mat", "nonsense", "setid.mat is not a MATLAB file"),
        ("stanford-dogs", "test_list.mat", None, "test_list.mat is missing"),
        ("stanford-cars", "devkit/cars_train_annos.mat", "x", "is not a MATLAB file"),
        ("ocr-vqa", "dataset.json", "[", "dataset.json is not JSON"),
    ],
)
def test_a_damaged_copy_is_named(
    tmp_path: Path, name: str, file: str, damage: str | None, words: str
) -> None:
    root = REPLICAS[name](tmp_path)
    (root / file).unlink() if damage is None else (root / file).write_text(damage)
    with pytest.raises(DataError, match=words):
        load_data(name, root=root, partial=True)


def test_wrong_entries_are_named(tmp_path: Path) -> None:
    root = REPLICAS["ocr-vqa"](tmp_path / "o")
    books = json.loads((root / "dataset.json").read_text())
    write(root / "dataset.json", books | {"0000000000": books["0000000000"] | {"split": 7}})
    with pytest.raises(DataError, match=r"book 0000000000: the split must be 1, 2 or 3, not 7"):
        load_data("ocr-vqa", root=root)
    write(root / "dataset.json", books | {"0000000000": books["0000000000"] | {"answers": ["one"]}})
    with pytest.raises(DataError, match=r"book 0000000000: 2 questions and 1 answers"):
        load_data("ocr-vqa", root=root)
    root = REPLICAS["eurosat"](tmp_path / "e")
    paint(root / "EuroSAT" / "2750" / "Glacier" / "Glacier_1.jpg", 1)
    with pytest.raises(DataError, match="'Glacier' is not a class of EuroSAT"):
        load_data("eurosat", root=root, partial=True)
