"""The embedded domains, as shipped."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from craft.core.errors import DataError
from craft.data import (
    APPAREL_WORDS,
    EMBEDDED,
    SKETCH_WORDS,
    catalogue,
    contact_sheet,
    load_data,
    verify_images,
)
from craft.formats.names import shipped, shipped_folder

LABELLED = sorted(name for name, domain in EMBEDDED.items() if domain.task == "classification")


@pytest.mark.parametrize("name", LABELLED)
def test_the_promises_of_an_embedded_domain(name: str) -> None:
    data, domain = load_data(name, answer_with="letter"), EMBEDDED[name]
    assert data.task == "classification" and data.name == name and data.licence
    assert data.classes == tuple(sorted(domain.classes))
    assert len(data.held_out) == round(0.2 * len(domain.classes))
    raw = domain.load()
    assert Counter(s.split for s in raw.samples) == {"train": domain.train, "test": domain.test}
    assert len(data.test) == domain.test
    assert not {s.id for s in data.train} & {s.id for s in data.test}
    ids = [s.id for s in data.all_samples()]
    assert len(ids) == len(set(ids))

    held = set(data.held_out)
    for sample in [*data.train, *data.validation]:
        assert sample.seen and sample.label not in held and not held & set(sample.choices)
        assert not any(word in sample.prompt().split("\n") for word in held)
    assert {s.label for s in data.train} == set(data.classes) - held
    in_validation = {s.label for s in data.validation}
    assert in_validation <= set(data.classes) - held
    assert len(in_validation) == min(len(data.validation), len(data.classes) - len(held))  # even over classes
    assert {s.label for s in data.test} == set(data.classes)
    assert all(s.seen == (s.label not in held) for s in data.test)
    assert any(held & set(s.choices) for s in data.test if s.seen)
    assert all(len(set(s.choices)) == 4 and s.answer_text == s.label for s in data.all_samples())
    assert set(Counter(s.answer for s in data.test)) == set("ABCD")
    split = {part: {s.split for s in data.samples(part)} for part in ("train", "validation", "test")}
    assert split == {"train": {"train"}, "validation": {"validation"}, "test": {"test"}}
    assert data.test[0].texts() == (f"An image of a {data.domain}, specifically a {data.test[0].label}.",)


def test_apparel_is_balanced_and_real() -> None:
    raw = EMBEDDED["apparel"].load()
    counts = Counter((s.split, s.label) for s in raw.samples)
    assert all(counts["train", w] == 300 and counts["test", w] == 100 for w in APPAREL_WORDS)
    images = np.stack([s.image for s in raw.samples if isinstance(s.image, np.ndarray)])
    assert images.shape == (4000, 28, 28) and images.dtype == np.uint8
    trousers = images[[s.label == "trousers" for s in raw.samples]].mean(0)
    assert trousers[:, 10:18].mean() > 3 * trousers[:, :4].mean()  # narrow and upright
    size = sum(
        p.stat().st_size for p in (Path(__file__).parents[2] / "src/craft/data/domains/apparel").iterdir()
    )
    assert size < 2.5e6


def test_sketch_has_drawings_of_its_own_for_the_test() -> None:
    raw = EMBEDDED["sketch"].load()
    assert len(SKETCH_WORDS) == len(set(SKETCH_WORDS)) >= 120
    counts = Counter((s.split, s.label) for s in raw.samples)
    assert all(counts["train", w] == 6 and counts["test", w] == 3 for w in SKETCH_WORDS)
    images = np.stack([s.image for s in raw.samples if isinstance(s.image, np.ndarray)])
    assert images.shape == (2268, 112, 112) and set(np.unique(images)) == {0, 85, 170, 255}
    assert len({image.tobytes() for image in images}) == len(images)  # no test picture is a training picture
    ink = (images < 128).mean((1, 2))
    assert ink.min() > 0.005 and ink.max() < 0.4  # lines on white paper, none empty
    edge = np.concatenate([images[:, [0, -1]].reshape(-1), images[:, :, [0, -1]].reshape(-1)])
    assert (edge < 128).mean() < 0.01  # nothing is cut off
    folder = Path(__file__).parents[2] / "src/craft/data/domains"
    size = sum(p.stat().st_size for name in ("sketch", "scenes") for p in (folder / name).iterdir())
    assert size < 2 * 2**20


def test_sketch_words_fit_the_cap_of_five_tokens() -> None:
    """Strict accuracy needs the whole word within five tokens, whatever shipped LLM says it."""
    for name in shipped():
        if not (shipped_folder(name) / "llm").is_dir():
            continue  # its LLM is borrowed from a package, which may not be installed
        tokenizer = AutoTokenizer.from_pretrained(shipped_folder(name) / "llm")
        longest = max(SKETCH_WORDS, key=lambda word: len(tokenizer(f" {word}")["input_ids"]))
        assert len(tokenizer(f" {longest}", add_special_tokens=False)["input_ids"]) <= 5, (name, longest)


def test_digits_are_the_original_pictures() -> None:
    """The sheet gives what scikit-learn's copy gave to results of before: pixels, ids, labels and splits."""
    samples = EMBEDDED["digits"].load().samples
    images = np.stack([s.image for s in samples if isinstance(s.image, np.ndarray)])
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8
    assert len(np.unique(images)) == 17 and images.max() == 255 and images.min() == 0
    assert [s.id for s in samples[:2]] == ["digits/0000", "digits/0001"]
    seeds = {
        0: "7b5d8cb66cf23b9657a341bf8a263e5aa1b4bc993b91b052dfdf43723fba2bcc",
        1: "ea69acd69a74ff0602aa263c6e34ad2ddd908b2b4df0abdab534de1cb9ecda28",
    }
    for seed, fingerprint in seeds.items():
        assert load_data("digits", seed=seed).fingerprint == fingerprint


def test_the_test_images_do_not_depend_on_the_seed() -> None:
    one, two = load_data("digits", seed=1), load_data("digits", seed=2)
    assert [s.id for s in one.test] == [s.id for s in two.test]
    assert one.held_out != two.held_out
    assert one.fingerprint != two.fingerprint
    again = load_data("digits", seed=1)
    assert again.fingerprint == one.fingerprint and again.test == one.test and again.train == one.train


def test_limit_keeps_classes_even_and_order() -> None:
    full, few = load_data("apparel"), load_data("apparel", limit=40)
    assert (len(few.train), len(few.validation), len(few.test)) == (40, 40, 40)
    assert Counter(s.label for s in few.test).most_common()[-1][1] == 4
    place = {s.id: n for n, s in enumerate(full.test)}
    assert [place[s.id] for s in few.test] == sorted(place[s.id] for s in few.test)
    assert all(s in full.test for s in few.test)
    with pytest.raises(DataError, match="limit"):
        load_data("apparel", limit=0)


def test_a_manifests_hold_out_can_be_given() -> None:
    data = load_data("apparel", seed=5, held_out=["shirt"])
    assert data.held_out == ("shirt",) and "shirt" not in {s.label for s in data.train}
    assert load_data("apparel", unseen_fraction=0.0).held_out == ()
    with pytest.raises(DataError, match="no class hat"):
        load_data("apparel", held_out=["hat"])
    with pytest.raises(DataError, match="fewer than two classes"):
        load_data("apparel", held_out=APPAREL_WORDS[1:])


def test_hard_distractors_take_a_function_of_the_names() -> None:
    def alike(names: tuple[str, ...]) -> np.ndarray:
        return np.array([[float(a[0] == b[0]) for b in names] for a in names])

    data = load_data("apparel", distractors="hard", similarity=alike, limit=100)
    sneakers = [s for s in data.test if s.label == "sneaker"]
    assert sneakers and all({"sandal", "shirt"} <= set(s.choices) for s in sneakers)
    with pytest.raises(DataError, match="similarity"):
        load_data("apparel", distractors="hard")


def test_check_catalogue_and_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_data("digits", limit=5)
    assert verify_images(data) == 15
    assert "checking the images of digits" in capsys.readouterr().err
    rows = {row["name"]: row for row in catalogue()}
    assert rows["apparel"]["images"] == 4000 and rows["digits"]["images"] == 1797
    assert all({"images", "classes", "task", "licence", "source"} <= set(row) for row in rows.values())
    sheet = contact_sheet(data.test, tmp_path / "sheet.png", columns=3, cell=20)
    with Image.open(tmp_path / "sheet.png") as written:
        assert written.size == sheet.size == (76, 80)
    with pytest.raises(DataError, match="at least one"):
        contact_sheet([])
