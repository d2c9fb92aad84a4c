"""Your own data: folders of class folders and JSONL files, and every mistake one can make with them."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from craft.core.errors import DataError
from craft.data import LETTERS, load_data, prepare, verify_images

TREES = ("ash", "elm", "fir", "oak", "silver_birch", "yew")


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), shade, np.uint8)).save(path)


def folder(root: Path, classes: tuple[str, ...] = TREES, each: int = 10, suffix: str = ".png") -> Path:
    for c, name in enumerate(classes):
        for n in range(each):
            picture(root / name / f"{n}{suffix}", 10 * c + n)
    return root


def jsonl(path: Path, rows: list, images: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n", encoding="utf-8"
    )
    for row in rows:
        if images and isinstance(row, dict) and isinstance(row.get("image"), str):
            picture(path.parent / row["image"])
    return path


def row(n: int, **fields: object) -> dict:
    return {"image": f"img/{n}.png", "question": "What is it?", "answer": f"thing {n % 3}"} | fields


# --- folders


def test_class_folders_are_split_by_class_once_for_every_seed(tmp_path: Path) -> None:
    data = load_data(str(folder(tmp_path / "garden_trees")))
    assert data.name == "garden_trees" and data.domain == "garden trees" and data.task == "classification"
    assert data.classes == ("ash", "elm", "fir", "oak", "silver birch", "yew")
    assert len(data.held_out) == 1
    assert Counter(s.label for s in data.test) == dict.fromkeys(data.classes, 2)
    assert len(data.train) + len(data.validation) == 5 * 8 and len(data.validation) == 4
    other = load_data(tmp_path / "garden_trees", seed=7)
    assert {s.id for s in other.test} == {s.id for s in data.test}
    assert {s.id for s in load_data(tmp_path / "garden_trees", split_seed=7).test} != {
        s.id for s in data.test
    }
    assert data.test[0].texts()[0].startswith("An image of a garden trees, specifically a ")
    assert load_data(tmp_path / "garden_trees", domain="tree").domain == "tree"
    assert verify_images(data, progress=False) == 52  # the training images of the unseen class are not used


def test_every_class_is_tested_however_small(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, ("a", "b", "c", "d"), each=2), unseen_fraction=0)
    assert Counter(s.label for s in data.test) == dict.fromkeys("abcd", 1)
    assert Counter(s.label for s in data.train) == dict.fromkeys("abcd", 1)


def test_train_and_test_folders(tmp_path: Path) -> None:
    folder(tmp_path / "train", TREES[:5], each=4, suffix=".JPG")
    folder(tmp_path / "test", TREES, each=1)
    folder(tmp_path / "val", TREES, each=1)
    (tmp_path / "train" / "ash" / "notes.txt").write_text("not a picture")
    picture(tmp_path / "train" / "ash" / ".thumbnails" / "t.png")
    picture(tmp_path / "train" / "ash" / "deeper" / "more.png")
    data = load_data(tmp_path)
    assert "yew" in data.held_out and len(data.held_out) == 2  # no training picture: unseen by nature
    assert len(data.test) == 6 and sum(not s.seen for s in data.test) == 2
    assert len(data.train) in (16, 17) and len(data.validation) == 4
    assert all(s.choices and not set(s.choices) & set(data.held_out) for s in [*data.train, *data.validation])


def test_pictures_by_other_endings_are_taken(tmp_path: Path) -> None:
    """A browser saves JPEGs as .jfif; ".AVIF" and others are taken where Pillow reads them."""
    root, endings = folder(tmp_path / "trees", ("ash", "elm"), each=3), [".jfif", ".JPE", ".pjpeg", ".pbm"]
    endings += [".jp2"] * features.check("jpg_2000")
    endings += [".AVIF"] * (".avif" in Image.registered_extensions())
    image = Image.fromarray(np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3))
    for n, ending in enumerate(endings):
        form = {".jfif": "JPEG", ".JPE": "JPEG", ".pjpeg": "JPEG", ".pbm": "PPM", ".jp2": "JPEG2000"}
        image.save(root / "ash" / f"new{n}{ending}", form.get(ending, ending[1:].upper()))
    (root / "ash" / "notes.txt").write_text("no picture")
    (root / "ash" / ".DS_Store").write_text("no picture")
    data = load_data(root)
    assert len(data.all_samples()) == 6 + len(endings) == verify_images(data, progress=False)


def test_pictures_that_cannot_be_read_are_not_passed_over(tmp_path: Path) -> None:
    root = folder(tmp_path / "trees", ("ash", "elm"), each=3)
    for name in ("ash/a.HEIC", "ash/b.heic", "elm/c.jxl", "elm/0.heic", "elm/._d.heic"):
        (root / name).write_bytes(b"whatever")  # elm/0.png is there: 0.heic is what it was made of
    told = r"3 of 9 images in .*trees .*\(2 \.heic, 1 \.jxl\): .*ash/a\.HEIC.*[Cc]onvert.*JPEG or PNG"
    with pytest.raises(DataError, match=told) as caught:
        load_data(root)
    assert "\n" not in str(caught.value)
    for name in ("ash/a.HEIC", "ash/b.heic", "elm/c.jxl"):
        (root / name).rename((root / name).with_suffix(".txt"))
    assert len(load_data(root).all_samples()) == 6
    for path in root.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"1 of 1 images.*elm/0\.heic"):  # and not: no images
        load_data(root)


def test_what_pillow_learned_to_read_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `pillow_heif.register_heif_opener()` does it; and without AVIF its files are told."""
    root = folder(tmp_path / "trees", ("ash", "elm"), each=3)
    picture(root / "ash" / "a.png")
    (root / "ash" / "a.png").rename(root / "ash" / "a.heic")
    Image.init()
    monkeypatch.setitem(Image.EXTENSION, ".heic", "PNG")
    assert len(load_data(root).all_samples()) == 7
    (root / "ash" / "a.heic").rename(root / "ash" / "a.avif")
    monkeypatch.delitem(Image.EXTENSION, ".avif", raising=False)
    with pytest.raises(DataError, match=r"1 \.avif"):
        load_data(root)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, ("bus", "car", "train"), each=5))
    assert data.classes == ("bus", "car", "train") and data.held_out == ()
    assert all(len(s.choices) == 3 for s in data.all_samples())


def test_the_fingerprint_sees_pixels_and_words(tmp_path: Path) -> None:
    folder(tmp_path / "a")
    first = load_data(tmp_path / "a").fingerprint
    assert load_data(tmp_path / "a").fingerprint == first
    picture(tmp_path / "a" / "oak" / "0.png", 99)
    assert load_data(tmp_path / "a").fingerprint != first


def test_folder_mistakes(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "ash").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty has no images in class folders.*Expected"):
        load_data(empty)
    picture(tmp_path / "loose" / "a.png")
    with pytest.raises(DataError, match="has images but no class folders"):
        load_data(tmp_path / "loose")
    with pytest.raises(DataError, match="single class, 'oak'"):
        load_data(folder(tmp_path / "one", ("oak",)))
    folder(tmp_path / "mixed" / "train")
    folder(tmp_path / "mixed", ("pine",))
    with pytest.raises(DataError, match=r"other folders next to train: pine"):
        load_data(tmp_path / "mixed")
    with pytest.raises(DataError, match=r"both the class 'red oak'"):
        load_data(folder(tmp_path / "twice", ("red oak", "red_oak"), each=1))


def test_a_wrong_path_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data at 'aparel'.*Did you mean 'apparel'\?"):
        load_data("aparel")
    folder(tmp_path / "flowers")
    with pytest.raises(DataError, match=r"Did you mean '.*flowers'\?"):
        load_data(str(tmp_path / "flower"))
    with pytest.raises(DataError, match=r"no data at '/no/such/place'.*Embedded: apparel, digits"):
        load_data("/no/such/place")
    with pytest.raises(DataError, match="no data at '~no-such-user/x'"):
        load_data("~no-such-user/x")
    (tmp_path / "table.xlsx").write_text("image,answer\n")
    with pytest.raises(DataError, match="neither a folder"):
        load_data(tmp_path / "table.xlsx")
    assert load_data("flowers", root=tmp_path).name == "flowers"


def test_a_path_is_a_folder_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`str(Path("./apparel"))` is "apparel", the name of an embedded domain."""
    folder(tmp_path / "apparel", ("hat", "glove", "scarf"))
    monkeypatch.chdir(tmp_path)
    for place in (Path("./apparel"), "./apparel"):
        assert load_data(place).classes == ("glove", "hat", "scarf")
    assert "sneaker" in load_data("apparel").classes
    assert "seven" in load_data(Path("digits")).classes


def test_corrupt_images_are_named_before_training(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, each=5))
    bad = Path(str(data.train[0].image))
    whole = bad.read_bytes()
    bad.write_bytes(whole[: whole.index(b"IDAT") + 6])
    with pytest.raises(DataError, match=rf"{bad.name} is (truncated|not an image)") as caught:
        verify_images(data, progress=False)
    assert "\n" not in str(caught.value)
    for sample in data.train[1:7]:
        Path(str(sample.image)).write_text("text")
    with pytest.raises(DataError, match=r"^7 of \d+ images cannot be used\..*And 2 more\.$"):
        verify_images(data, progress=False)


# --- JSONL


def test_open_questions(tmp_path: Path) -> None:
    rows = [row(n, captions=["a thing"]) for n in range(20)]
    rows[0] |= {"question": "What color is the car?", "answer": "Red", "directive": "Reply in a word."}
    data = load_data(jsonl(tmp_path / "my_questions.jsonl", rows))
    assert data.task == "vqa" and data.held_out == data.classes == ()
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 2, 4)
    sample = next(s for s in data.all_samples() if s.id == "my_questions.jsonl:1")
    assert sample.prompt() == "What color is the car?\nReply in a word."
    assert sample.texts() == ("The car is red.", "a thing") and sample.concept == "Red"
    assert data.test[0].prompt().endswith("\nAnswer as succinctly as possible.")
    assert verify_images(data, progress=False) == 20


@pytest.mark.parametrize("form", ["choices", "label", "open"])
def test_an_empty_directive_asks_for_none(tmp_path: Path, form: str) -> None:
    names = list("abcdef")
    own = {
        "choices": {"choices": ["thing 0", "thing 1", "thing 2"]},
        "label": {"answer": None, "question": None},
        "open": {},
    }[form]
    rows = [row(n, id=str(n), label=names[n % 6] if form == "label" else None, **own) for n in range(36)]
    for n, told in enumerate(("", None, "Reply in a word.")):
        for changed in rows[n::3]:
            changed |= {"directive": told}
    usual = "Answer as succinctly as possible." if form == "open" else "Answer with the option only."
    source = jsonl(tmp_path / "q.jsonl", rows)
    prepare(source, None, tmp_path / "m", progress=False)
    again = prepare(tmp_path / "m", None, tmp_path / "m2", progress=False)
    assert (tmp_path / "m" / "samples.jsonl").read_bytes() == (again.path / "samples.jsonl").read_bytes()
    for data in (load_data(source), load_data(tmp_path / "m")):
        for sample in data.all_samples():
            said = ("", usual, "Reply in a word.")[int(sample.id) % 3]
            assert sample.directive == said
            last = sample.prompt().split("\n")[-1]
            assert last == (
                said
                or (
                    sample.question
                    if form == "open"
                    else f"{LETTERS[len(sample.choices) - 1]}. {sample.choices[-1]}"
                )
            )


def test_given_splits_are_kept(tmp_path: Path) -> None:
    splits = ["train"] * 8 + ["val"] * 2 + ["test"] * 3
    data = load_data(jsonl(tmp_path / "q.jsonl", [row(n, split=s, id=n) for n, s in enumerate(splits)]))
    assert [s.id for s in data.train] == [str(n) for n in range(8)]
    assert (len(data.validation), len(data.test)) == (2, 3)
    only_test = load_data(jsonl(tmp_path / "t.jsonl", [row(0, split="test")]))
    assert len(only_test.test) == 1
    with pytest.raises(DataError, match="no train samples"):
        only_test.samples("train")


@pytest.mark.parametrize("way", ["letter", "option"])
def test_choices_are_listed_in_the_order_given(tmp_path: Path, way: str) -> None:
    options = ["Oak", "Ash", "Elm"]
    rows = [row(0, answer="elm"), row(1, answer="B"), row(2, answer="Oak"), row(3, answer="Oak")]
    path = jsonl(tmp_path / "q.jsonl", [r | {"choices": options, "split": "test"} for r in rows])
    data = load_data(path, answer_with=way)  # pyright: ignore[reportArgumentType]
    assert data.task == "vqa"
    assert [s.answer for s in data.test] == (
        ["C", "B", "A", "A"] if way == "letter" else ["Elm", "Ash", "Oak", "Oak"]
    )
    assert [s.answer_text for s in data.test] == ["Elm", "Ash", "Oak", "Oak"]
    assert data.test[0].prompt().split("\n")[:4] == ["What is it?", "A. Oak", "B. Ash", "C. Elm"]


def test_labels_make_a_classification_with_hold_out(tmp_path: Path) -> None:
    names = list("abcdef")
    rows = [row(n, answer=names[n % 6], label=names[n % 6], choices=names) for n in range(60)]
    data = load_data(jsonl(tmp_path / "q.jsonl", rows), domain="letter", answer_with="letter")
    (held,) = data.held_out
    assert data.task == "classification" and data.classes == tuple(names)
    for sample in [*data.train, *data.validation]:
        assert sample.label != held and held not in sample.choices and len(sample.choices) == 5
        assert sample.answer_text == sample.label and sample.prompt().count("\n") == 6
    assert {s.label for s in data.test} == set(names) and all(s.choices == tuple(names) for s in data.test)
    assert data.test[0].texts() == (f"An image of a letter, specifically a {data.test[0].label}.",)
    mask = load_data(jsonl(tmp_path / "open.jsonl", [row(n, label=f"topic {n % 2}") for n in range(9)]))
    assert mask.task == "vqa" and {s.concept for s in mask.train} == {"topic 0", "topic 1"}


def test_a_label_among_choices_is_the_answer(tmp_path: Path) -> None:
    names = list(TREES)
    rows = [
        {"image": f"img/{n}.png", "label": names[n % 6] if n % 2 else "ABCDEF"[n % 6], "choices": names}
        for n in range(60)
    ]
    data = load_data(jsonl(tmp_path / "q.jsonl", rows), domain="tree")
    (held,) = data.held_out
    assert data.task == "classification" and data.classes == TREES
    for sample in data.all_samples():
        assert sample.answer == sample.label == sample.choices[sample.correct or 0]
        assert sample.label == names[int(Path(str(sample.image)).stem) % 6]
        assert sample.question == "Which of these choices is shown in the image?"
        assert sample.texts() == (f"An image of a tree, specifically a {sample.label}.",)
    assert all(held not in s.choices for s in data.train) and all(len(s.choices) == 6 for s in data.test)
    rows[3]["label"] = "pine"
    with pytest.raises(DataError, match=r"q\.jsonl:4: the answer 'pine' is not one of the choices"):
        load_data(jsonl(tmp_path / "q.jsonl", rows))


def test_words_are_alike_as_the_metric_has_it(tmp_path: Path) -> None:
    """ "é" as one character or two, and spaces, tell neither answers nor options nor classes apart."""
    one, two = "caf\u00e9 noir", "cafe\u0301  noir"
    names = [one, "elm", "fir", "oak", "yew"]
    rows = [row(n, answer=names[n % 5], label=names[n % 5], choices=names) for n in range(30)]
    for changed in rows[::10]:
        changed["label"] = two
    for changed in rows[5::10]:
        changed["answer"] = two
    rows[1]["choices"] = [two, *names[1:]]
    data = load_data(jsonl(tmp_path / "q.jsonl", rows), held_out=[one])
    assert data.task == "classification" and data.classes == ("caf\u00e9 noir", "elm", "fir", "oak", "yew")
    assert all({one, two}.isdisjoint(sample.choices) for sample in data.train)
    rows[2]["choices"] = [*names, two]
    with pytest.raises(DataError, match=r"q\.jsonl:3: 'choices' names an option twice"):
        load_data(jsonl(tmp_path / "q.jsonl", rows))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{not json", r"q\.jsonl:2: not valid JSON"),
        ('["a"]', r"q\.jsonl:2: a list, not an object"),
        ({"image": "x.png", "question": "?"}, r"q\.jsonl:2: the field 'answer' is missing"),
        (
            {"imgae": "x.png", "question": "?", "answer": "a"},
            r"'image' is missing.*'imgae'",
        ),
        (row(1, answer="  "), "'answer' must be a non-empty text"),
        (row(1, question=None), "'question' is empty"),
        (
            row(1, choices=["a", "b"]),
            r"q\.jsonl:2: the answer 'thing 1' is not one of the choices \['a', 'b'\]",
        ),
        (row(1, choices=["thing 1"]), "2 to 26 options, not 1"),
        (row(1, choices=["thing 1", "Thing 1"]), "names an option twice"),
        (row(1, choices="thing 1, b"), "must be a list of texts"),
        (row(1, split="dev-set"), "unknown split 'dev-set'"),
        (row(1, id="same"), r"q\.jsonl:2: the id 'same' was already used in .*q\.jsonl:1"),
        (row(1, answer=float("nan")), "'answer' is empty"),
        ('{"image": "0.png", "question": "?", "answer": ' + "7" * 5000 + "}", r"q\.jsonl:2: .*4300 digits"),
        ("[" * 100_000, r"q\.jsonl:2: not valid JSON \(maximum recursion depth"),
        (row(1, caption="a car"), "unknown field 'caption'; did you mean 'captions'"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, bad: object, words: str) -> None:
    path = jsonl(tmp_path / "q.jsonl", [row(0, id="same"), bad, row(2)])
    with pytest.raises(DataError, match=words) as caught:
        load_data(path)
    assert "\n" not in str(caught.value)


def test_lines_that_are_no_rows_count(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", ["[1]", "{", row(1, answer=""), row(2)])
    with pytest.raises(DataError, match="3 of 4 rows cannot be used"):
        load_data(path)


def test_one_class_in_two_spellings_is_refused(tmp_path: Path) -> None:
    rows = [
        {"image": f"{n}.png", "label": name}
        for n, name in enumerate(("elm", "ash", "Silver  Fir", "silver fir"))
    ]
    with pytest.raises(DataError, match=r"'Silver  Fir' and 'silver fir'.*q\.jsonl:4"):
        load_data(jsonl(tmp_path / "q.jsonl", rows))


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "trees", each=2)
    picture(root / "ash" / "caf\udce9.png")  # Latin-1, as old archives unpack
    with pytest.raises(DataError, match=r"caf.udce9\.png.*not UTF-8"):
        load_data(root)
    path = jsonl(tmp_path / "q.jsonl", [row(0), row(1, answer="\ud83d")])
    with pytest.raises(DataError, match=r"q\.jsonl:2: 'answer' .*half a character"):
        load_data(path)


def test_missing_images_are_named_with_their_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [row(n) for n in range(9)])
    for n in range(1, 8):
        (tmp_path / "img" / f"{n}.png").unlink()
    with pytest.raises(DataError, match=r"7 of the 9 rows.*1\.png \(.*q\.jsonl:2\);.*and 2 more") as caught:
        load_data(path)
    assert "\n" not in str(caught.value)
    elsewhere = jsonl(tmp_path / "lists" / "r.jsonl", [row(0), row(8), row(0), row(8)], images=False)
    assert load_data(elsewhere, root=tmp_path).task == "vqa"


def test_empty_constant_and_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="has no rows"):
        load_data(tmp_path / "e.jsonl")
    with pytest.raises(DataError, match="every row has the same answer, 'yes'"):
        load_data(jsonl(tmp_path / "c.jsonl", [row(n, answer="yes") for n in range(8)]))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\x00")
    with pytest.raises(DataError, match="UTF-8"):
        load_data(tmp_path / "b.jsonl")
    one = [row(n, answer="a", label="a", choices=["a", "b"]) for n in range(6)]
    with pytest.raises(DataError, match="single class"):
        load_data(jsonl(tmp_path / "s.jsonl", one))


def test_a_corrupt_image_of_a_row_is_named_with_its_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [row(n) for n in range(6)])
    (tmp_path / "img" / "3.png").write_text("nothing")
    with pytest.raises(DataError, match=r"q\.jsonl:4: the image .*3\.png is not an image"):
        verify_images(load_data(path), progress=False)
