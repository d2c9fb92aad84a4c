"""Folders are read as what they are: imagefolders, splits, links, and what systems leave in them."""

import base64
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from craft.core.errors import DataError
from craft.data import load_data, prepare, read_data, verify_images
from craft.data.images import suffixes
from replicas import class_folders, paint

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n"


def flat(folder: Path, count: int = 8, start: int = 0, names: tuple[str, ...] = ("ash", "elm")) -> list[dict]:
    """Pictures in one folder, and the rows that say what they are."""
    rows = []
    for n in range(count):
        paint(folder / f"{n}.png", start + n, 32)
        rows.append({"file_name": f"{n}.png", "label": names[n % len(names)]})
    return rows


def table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))


def labels(root: Path) -> dict[str, Counter]:
    """Labels by split, as read."""
    counts: dict[str, Counter] = {}
    for sample in read_data(root).samples:
        counts.setdefault(sample.split, Counter())[sample.label] += 1
    return counts


def notes(root: Path) -> str:
    return "; ".join(read_data(root).notes)


# --- imagefolder


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet", "Metadata.CSV"])
def test_imagefolder_with_a_table_in_each_split(tmp_path: Path, name: str) -> None:
    root = tmp_path / "garden_trees"
    for split, count, start in (("train", 8, 0), ("test", 4, 100)):
        table(root / split / name, flat(root / split, count, start))
    assert labels(root) == {"train": Counter(ash=4, elm=4), "test": Counter(ash=2, elm=2)}
    data = load_data(root, unseen_fraction=0)
    assert data.name == "garden_trees" and data.classes == ("ash", "elm") and len(data.test) == 4
    assert data.test[0].texts()[0].startswith("An image of a garden trees, specifically a")
    assert verify_images(data, progress=False) == 12 and data.source == str(root) and data.notes == []
    prepare(root, None, tmp_path / "m", progress=False)
    assert len(load_data(tmp_path / "m", unseen_fraction=0).test) == 4


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
@pytest.mark.parametrize("data_folder", ["", "data/"])
def test_imagefolder_with_one_table_names_files_in_folders(
    tmp_path: Path, name: str, data_folder: str
) -> None:
    rows = []
    for split, count, start in (("train", 8, 0), ("valid", 4, 50), ("test", 4, 100)):
        folder = f"{data_folder}{split}"
        rows += [
            row | {"file_name": f"{folder}/{row['file_name']}"}
            for row in flat(tmp_path / folder, count, start)
        ]
    table(tmp_path / name, rows)
    counts = labels(tmp_path)
    assert {split: sum(c.values()) for split, c in counts.items()} == {"train": 8, "validation": 4, "test": 4}


def test_imagefolder_without_splits_and_a_class_called_train(tmp_path: Path) -> None:
    rows = flat(tmp_path / "one", 8)
    table(tmp_path / "one" / "metadata.csv", rows)
    assert labels(tmp_path / "one") == {"": Counter(ash=4, elm=4)}
    rows = []
    for name in ("train", "bus"):
        rows += [
            {"file_name": f"{name}/{row['file_name']}", "label": name}
            for row in flat(tmp_path / "two" / name, 6, 50 * len(name))
        ]
    table(tmp_path / "two" / "metadata.csv", rows)
    assert labels(tmp_path / "two") == {"": Counter(train=6, bus=6)}


def test_imagefolder_with_questions_in_class_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = flat(tmp_path / "train" / name, 4, 10 * ord(name))
        rows = [{"file_name": r["file_name"], "question": "What?", "answer": r["label"]} for r in rows]
        table(tmp_path / "train" / name / "metadata.jsonl", rows)
    samples = read_data(tmp_path).samples
    assert len(samples) == 8 and {s.split for s in samples} == {"train"}
    assert {s.answer for s in samples} == {"ash", "elm"}


def test_what_the_table_does_not_name_is_counted_and_a_whole_split_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "train" / "metadata.csv", flat(tmp_path / "train", 8)[:6])
    assert "2 images that no table names (train/6.png, train/7.png)" in notes(tmp_path)
    flat(tmp_path / "test", 4, 100)
    with pytest.raises(DataError, match=r"images in test that no table names.*Put a metadata\.csv there"):
        load_data(tmp_path)


def test_what_the_table_names_must_be_there(tmp_path: Path) -> None:
    table(tmp_path / "train" / "metadata.csv", flat(tmp_path / "train", 8))
    (tmp_path / "train" / "3.png").unlink()
    with pytest.raises(DataError, match=r"1 of the 8 rows.*train/3\.png \(.*metadata\.csv:5\)"):
        load_data(tmp_path)


def test_two_tables_of_one_folder_and_tables_of_captions_are_refused(tmp_path: Path) -> None:
    rows = flat(tmp_path / "train", 8)
    table(tmp_path / "train" / "metadata.csv", rows)
    table(tmp_path / "train" / "metadata.jsonl", rows)
    with pytest.raises(DataError, match=r"several tables.*metadata\.csv, metadata\.jsonl"):
        load_data(tmp_path)
    (tmp_path / "train" / "metadata.csv").unlink()
    for field in ("text", "caption"):
        captions = [{"file_name": row["file_name"], field: "a tree on a hill"} for row in rows]
        table(tmp_path / "train" / "metadata.jsonl", captions)
        with pytest.raises(DataError, match=r"metadata\.jsonl:1: .*A row needs .*image and label"):
            load_data(tmp_path)


def test_a_table_that_names_no_images_is_passed_over(tmp_path: Path) -> None:
    """As ISIC's downloads have it: ages and sexes of the patients."""
    class_folders(tmp_path, ("ash", "elm"))
    for folder in (tmp_path, tmp_path / "ash"):
        (folder / "metadata.csv").write_text("isic_id,age\nISIC_1,50\n")
    assert labels(tmp_path) == {"": Counter(ash=5, elm=5)} and "passed over: 2 .csv" in notes(tmp_path)
    rows = flat(tmp_path / "flat", 6)
    table(tmp_path / "flat" / "metadata.csv", [{"isic": r["file_name"], "kind": r["label"]} for r in rows])
    columns = {"image": "isic", "label": "kind"}
    assert len(read_data(tmp_path / "flat", columns=columns).samples) == 6
    with pytest.raises(DataError, match=r"no class folders.*There are tables.*flat/metadata\.csv"):
        load_data(tmp_path / "flat")


# --- what is no class


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"),
        ("train", "valid", "test"),
        ("Train", "Val"),
        ("train",),
        ("oak", "elm", "test"),
        ("training", "testing"),
    ],
)
def test_splits_without_classes_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        flat(tmp_path / name, 6, 50 * number)
    with pytest.raises(DataError, match=r"are splits and not classes.*FOLDER/train/<class>.*metadata\.csv"):
        load_data(tmp_path)


@pytest.mark.parametrize("names", [("valid", "invalid"), ("train", "bus", "car"), ("Test tube", "flask")])
def test_words_of_splits_among_classes_are_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        flat(tmp_path / name, 3, 50 * number)
    assert labels(tmp_path) == {"": Counter(dict.fromkeys(names, 3))}


def test_tables_next_to_flat_splits_are_named(tmp_path: Path) -> None:
    rows = flat(tmp_path / "train", 6) + flat(tmp_path / "test", 6, 50)
    table(tmp_path / "labels.csv", rows)
    with pytest.raises(DataError, match=r"There are tables.*labels\.csv"):
        load_data(tmp_path)
    for folder in ("train", "test"):
        (tmp_path / folder).rename(tmp_path / f"{folder}ing_images")
    (tmp_path / "training_images").rename(tmp_path / "images")
    (tmp_path / "testing_images").rename(tmp_path / "masks")
    with pytest.raises(DataError, match=r"no folders but images, masks.*There are tables.*labels\.csv"):
        load_data(tmp_path)


@pytest.mark.parametrize("outer", ["images", "car_data", "data"])
def test_one_folder_too_many_is_named(tmp_path: Path, outer: str) -> None:
    class_folders(tmp_path / outer, ("ash", "elm"))
    with pytest.raises(DataError, match=rf"no folders but {outer}.*are in .*{outer}, use that as the data"):
        load_data(tmp_path)
    assert len(load_data(tmp_path / outer).all_samples()) == 10


def test_splits_inside_of_classes_are_not_mixed(tmp_path: Path) -> None:
    for number, name in enumerate(("ash", "elm")):
        for split in ("train", "test"):
            flat(tmp_path / name / split, 4, 100 * number + 50 * (split == "test"))
    with pytest.raises(DataError, match=r"ash has the folders test, train.*mixed.*FOLDER/train/<class>"):
        load_data(tmp_path)


def test_two_levels_of_folders_are_said(tmp_path: Path) -> None:
    for number, name in enumerate(("bird/wren", "bird/robin", "fish/carp", "fish/pike")):
        flat(tmp_path / name, 4, 50 * number)
    assert labels(tmp_path) == {"": Counter(bird=8, fish=8)}
    assert "the classes are the 2 outer folders, not the 4 folders in them (bird/robin, …)" in notes(tmp_path)
    class_folders(tmp_path / "flat", ("ash", "elm"))
    assert notes(tmp_path / "flat") == ""


def test_class_folders_below_splits_go_on_being_read(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        for name in ("ash", "elm", "12"):
            flat(tmp_path / split / name, 4, 500 * number + 50 * len(name))
    (tmp_path / "train" / "ash" / "0.png").rename(tmp_path / "train" / "ash" / "0.PNG")
    counts = labels(tmp_path)
    assert counts == {split: {"ash": 4, "elm": 4, "12": 4} for split in ("train", "validation", "test")}
    assert notes(tmp_path) == ""


# --- links, permissions, pointers


def test_links_that_lead_nowhere_are_counted_and_named(tmp_path: Path) -> None:
    """As git-annex leaves them: without its files, a whole class would vanish."""
    root = class_folders(tmp_path / "trees", ("ash", "elm"))
    (root / "oak").mkdir()
    for n in range(4):
        (root / "oak" / f"{n}.jpg").symlink_to(f"../.git/annex/objects/Xk/{n}/SHA256E-s{n}.jpg")
    with pytest.raises(DataError, match=r"4 of 14 images.*4 in oak.*oak/0\.jpg.*git annex get"):
        load_data(root)
    for n in range(4):
        (root / "oak" / f"{n}.jpg").unlink()
    (root / "oak" / "0.jpg").symlink_to("/gone/0.jpg")
    with pytest.raises(DataError, match=r"1 of 11 images.*oak/0\.jpg, which names /gone/0\.jpg.*links"):
        load_data(root)
    (root / "oak" / "0.jpg").unlink()
    (root / "oak" / "notes.txt").symlink_to("/gone/notes.txt")  # no image: passed over
    assert "1 .txt (links that lead nowhere)" in notes(root)
    for name in ("fir", "v1.5"):
        (root / name).symlink_to(f"/gone/{name}")
        with pytest.raises(DataError, match=rf"links that lead nowhere \(1 in the folder itself\): {name}"):
            load_data(root)
        (root / name).unlink()
    (root / "ash" / "self").symlink_to("self")
    with pytest.raises(DataError, match=r"\(1 in ash\): ash/self, which names self"):
        load_data(root)
    train = class_folders(tmp_path / "split" / "train", ("ash", "elm"))
    (train / "oak").symlink_to("../gone")
    with pytest.raises(DataError, match=r"1 in train\): train/oak"):
        load_data(tmp_path / "split")


def test_linked_folders_inside_of_classes_are_read(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "trees", ("ash", "elm"))
    flat(tmp_path / "elsewhere" / "more", 3, 900)
    flat(tmp_path / "birch", 3, 950)
    (root / "ash" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "birch").symlink_to(tmp_path / "birch", target_is_directory=True)
    (root / "elm" / "one.png").symlink_to(tmp_path / "elsewhere" / "more" / "0.png")
    assert labels(root) == {"": Counter(ash=8, elm=6, birch=3)}
    assert any(sample.id == "ash/more/more/2.png" for sample in read_data(root).samples)


def test_circles_of_links_end(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "trees", ("ash", "elm"))
    (root / "ash" / "loop").symlink_to(root / "ash", target_is_directory=True)
    (root / "ash" / "up").symlink_to("..", target_is_directory=True)
    (root / "ash" / "everything").symlink_to("/", target_is_directory=True)
    (root / "elm" / "a").mkdir()
    (root / "elm" / "a" / "b").symlink_to(root / "elm", target_is_directory=True)
    assert labels(root) == {"": Counter(ash=5, elm=5)}
    assert "4 links to a folder that is read already" in notes(root)


def _no_entry(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Reading `folder` fails as for a user without permission, even for root."""
    scandir: Callable = os.scandir

    def refusing(path: object = ".") -> object:
        if os.fspath(path) == os.fspath(folder):  # type: ignore[arg-type]
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


@pytest.mark.parametrize("locked", ["oak", "oak/deeper", "."])
def test_folders_without_permission_are_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    root = class_folders(tmp_path, ("ash", "elm", "oak"))
    flat(root / "oak" / "deeper", 3, 77)
    _no_entry(monkeypatch, root / locked)
    name = "the folder itself" if locked == "." else locked
    with pytest.raises(DataError, match=rf"1 folder in .* may not be read: {name}\. .*chmod -R u\+rX"):
        load_data(root)


def test_folders_that_can_be_listed_but_not_entered_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = class_folders(tmp_path, ("ash", "elm", "oak"))
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: access(path, mode) and os.fspath(path) != os.fspath(root / "oak")
    )
    with pytest.raises(DataError, match=r"1 folder in .* may not be read: oak"):
        load_data(root)
    class_folders(tmp_path / "split" / "train", ("ash", "elm"))
    (root / "oak").rename(tmp_path / "split" / "test")
    monkeypatch.setattr(os, "access", lambda path, mode: os.fspath(path) != f"{tmp_path}/split/test")
    with pytest.raises(DataError, match=r"1 folder in .*split may not be read: test\."):
        load_data(tmp_path / "split")
    monkeypatch.setattr(os, "access", lambda path, mode: os.fspath(path) != f"{root}/oak")
    (root / "oak").mkdir()
    with pytest.raises(DataError, match=r"oak may not be read.*chmod u\+rx"):
        load_data(root / "oak")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_class_folder_of_mode_0_is_named(tmp_path: Path) -> None:
    root = class_folders(tmp_path, ("ash", "elm", "oak"))
    (root / "oak").chmod(0)
    try:
        with pytest.raises(DataError, match=r"may not be read: oak"):
            load_data(root)
    finally:
        (root / "oak").chmod(0o755)


def test_git_lfs_pointers_are_counted(tmp_path: Path) -> None:
    root = class_folders(tmp_path, ("ash", "elm"))
    for n in range(5):
        (root / "elm" / f"elm_{n}.jpg").write_text(POINTER.format(n))
    with pytest.raises(DataError, match=r"5 of 10 images.*Git LFS pointers.*elm/elm_0\.jpg.*`git lfs pull`"):
        load_data(root)
    for n in range(5):
        (root / "elm" / f"elm_{n}.jpg").write_text(f"/annex/objects/SHA256E-s10{n}--abc.jpg\n")
    with pytest.raises(DataError, match=r"5 of 10 images.*git-annex pointers.*`git annex get \.`"):
        load_data(root)


def test_pointers_and_links_of_rows_are_named(tmp_path: Path) -> None:
    rows = [{"image": paint(tmp_path / f"{n}.png", n), "label": ("a", "b")[n % 2]} for n in range(8)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "3.png").write_text(POINTER.format(3))
    with pytest.raises(DataError, match=r"q\.jsonl:4: .*3\.png is not an image.*Git LFS.*git lfs pull"):
        verify_images(load_data(tmp_path / "q.jsonl"), progress=False)
    (tmp_path / "3.png").unlink()
    (tmp_path / "3.png").symlink_to(".git/annex/objects/3.png")
    with pytest.raises(DataError, match=r"1 of the 8 rows.*3\.png \(.*q\.jsonl:4\).*git annex get"):
        load_data(tmp_path / "q.jsonl")


# --- what is passed over


def test_what_systems_leave_is_passed_over_by_kind_and_everything_is_counted(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "trees", ("ash", "elm"), each=6)
    paint(root / "ash" / "@eaDir" / "0.jpg" / "SYNOPHOTO_THUMB_XL.jpg", 900)
    paint(root / "@eaDir" / "SYNOINDEX.jpg", 901)
    paint(root / "__MACOSX" / "ash" / "1.jpg", 902)
    paint(root / "elm" / "#recycle" / "2.png", 903)
    paint(root / ".ipynb_checkpoints" / "3.png", 904)
    paint(root / "ash" / ".thumbs" / "deep" / "4.png", 905)
    paint(root / "logo.png", 906)
    (root / "elm" / "._elm_0.jpg").write_bytes(b"\0\5\x16\7" + b"\0" * 60)
    (root / "elm" / ".DS_Store").write_bytes(b"x")
    (root / "elm" / "Thumbs.db").write_bytes(b"x")
    (root / "elm" / "notes.txt").write_text("x")
    (root / "elm" / "LICENSE").write_text("x")
    (root / "elm" / "half.jpg.part").write_bytes(b"x")
    (root / "README.md").write_text("x")
    (root / "elm" / "elm_0.heic").write_bytes(b"x")  # what elm_0.jpg was made of
    (root / "fir").mkdir()
    raw = read_data(root)
    assert {sample.label for sample in raw.samples} == {"ash", "elm"} and len(raw.samples) == 12
    passed, empty = raw.notes
    kinds = dict(part.split(" ", 1)[::-1] for part in passed.removeprefix("passed over: ").split(", "))
    assert kinds == {
        "in @eaDir": "2",
        "in __MACOSX": "1",
        "in #recycle": "1",
        "hidden": "4",
        ".db": "1",
        ".txt": "1",
        "without an ending": "1",
        ".part": "1",
        ".md": "1",
        "images next to the folders": "1",
        "images that also exist in a format that is read": "1",
    }
    assert empty == "folders without images: fir"
    files = sum(len(names) for _, _, names in os.walk(root))
    assert files == len(raw.samples) + sum(map(int, kinds.values()))


def test_hidden_and_system_folders_are_no_classes_of_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        class_folders(tmp_path / split, ("ash", "elm"), each=4 + len(split))
        paint(tmp_path / split / "@eaDir" / "a.jpg", 3)
        paint(tmp_path / split / ".cache" / "a.jpg", 3)
    paint(tmp_path / "__MACOSX" / "train" / "ash" / "a.jpg", 3)
    data = load_data(tmp_path, unseen_fraction=0)
    assert data.classes == ("ash", "elm") and len(data.test) == 16
    assert "4 in @eaDir" not in notes(tmp_path) and "2 in @eaDir" in notes(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.png", b"", r"an empty file \(0 bytes\)"),
        ("a.jpg", b"<!DOCTYPE html><html>404</html>", "an HTML page"),
        ("a.jpg", b"\n\n <HTML><head>", "an HTML page"),
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", r"PostScript \(EPS\).*Convert"),
        ("a.tif", b"\xc5\xd0\xd3\xc6" + b"\0" * 40, "PostScript"),
        ("a.png", b"%PDF-1.7", "a PDF"),
        ("a.jpg", b"\0\0\0\x18ftypheic" + b"\0" * 20, "HEIC.*Convert"),
        ("a.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        ("a.png", b"<?xml version='1.0'?><svg/>", "SVG"),
        ("a.jpg", b"PK\3\4" + b"\0" * 30, "a ZIP.*Unpack"),
        ("a.jpg", b"\0" * 128 + b"DICM" + b"\0" * 30, "DICOM"),
    ],
)
def test_what_only_has_the_name_of_a_picture_is_called_by_its_own(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    root = class_folders(tmp_path, ("ash", "elm"))
    (root / "ash" / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"ash/{name} is not an image that can be opened \(it is {words}"):
        verify_images(load_data(root, unseen_fraction=0), progress=False)


@pytest.mark.parametrize("ending", [".heic", ".HEIF", ".dcm", ".psd", ".eps", ".tga"])
def test_formats_that_are_not_opened_are_refused_with_the_way_out(tmp_path: Path, ending: str) -> None:
    root = class_folders(tmp_path, ("ash", "elm"))
    (root / "ash" / f"new{ending}").write_bytes(b"whatever")
    with pytest.raises(DataError, match=rf"1 of 11 images.*1 {ending.lower()}.*magick mogrify -format png"):
        load_data(root)


def test_training_says_what_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from craft.recipes.questions import open_data
    from craft.training.config import DataConfig

    root = class_folders(tmp_path, ("ash", "elm"))
    paint(root / "ash" / "@eaDir" / "0.jpg", 900)
    open_data(DataConfig(name=str(root)), 0, lambda: pytest.fail("no model is needed"))
    assert capsys.readouterr().err == "note: passed over: 1 in @eaDir\n"


def rows_below(root: Path, folder: str, count: int, start: int) -> list[dict]:
    rows = flat(root / folder, count, start)
    return [row | {"file_name": f"{folder}/{row['file_name']}".removeprefix("./")} for row in rows]


def test_a_table_names_images_of_splits_and_of_other_folders(tmp_path: Path) -> None:
    """No split is drawn anew: test images would become training images."""
    rows = [*rows_below(tmp_path, "train", 8, 0), *rows_below(tmp_path, "test", 4, 50)]
    table(tmp_path / "metadata.csv", [*rows, *rows_below(tmp_path, "extra", 4, 100)])
    with pytest.raises(DataError, match=r"does not know: extra.*--splits extra=none"):
        read_data(tmp_path)
    splits = Counter(sample.split for sample in read_data(tmp_path, splits=["extra=test"]).samples)
    assert splits == {"train": 8, "test": 8}
    assert len(read_data(tmp_path, splits=["others=none"]).samples) == 12
    table(tmp_path / "metadata.csv", [*rows, *rows_below(tmp_path, ".", 2, 150)])
    with pytest.raises(DataError, match=r"metadata\.csv:14: the image is in no folder of a split"):
        read_data(tmp_path)


def test_an_imagefolder_whose_table_holds_the_images(tmp_path: Path) -> None:
    rows = []
    for row in flat(tmp_path / "test"):
        content = base64.b64encode((tmp_path / "test" / row["file_name"]).read_bytes()).decode()
        rows.append({"image": f"data:image/png;base64,{content}", "label": row["label"]})
        (tmp_path / "test" / row["file_name"]).unlink()
    table(tmp_path / "metadata.jsonl", rows)
    assert labels(tmp_path) == {"": Counter(ash=4, elm=4)}


@pytest.mark.parametrize("link", ["oak", "elm/more"])
def test_a_class_folder_that_leads_to_another_class_is_refused(tmp_path: Path, link: str) -> None:
    class_folders(tmp_path, ["ash", "elm"])
    (tmp_path / link).symlink_to(tmp_path / "ash")
    with pytest.raises(DataError, match=r"both lead to .*ash, so its images would be in two classes"):
        read_data(tmp_path)


def test_formats_are_asked_for_once_for_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each image, which took a third of the time."""
    for folder in ("ash", "elm"):
        flat(tmp_path / folder, 20)
    calls = []
    monkeypatch.setattr("craft.data.readers.scan.suffixes", lambda: calls.append(1) or suffixes())
    assert len(read_data(tmp_path).samples) == 40 and len(calls) <= 4


def test_a_class_folder_of_a_benchmark_is_read_as_any_other(tmp_path: Path) -> None:
    """Nothing in it is missing in silence."""
    folder = tmp_path / "Apple___healthy"
    for name in (folder.name, "Apple___Black_rot"):
        flat(tmp_path / name, 3)
    (folder / "z.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(DataError, match=r"1 of . images in .*Apple___healthy are links that lead nowhere"):
        read_data("plantvillage", tmp_path, partial=True)
    (folder / "z.jpg").unlink()
    (folder / "z.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match=r"1 of 4 images in .*Apple___healthy cannot be opened here"):
        read_data("plantvillage", tmp_path, partial=True)
    (folder / "z.heic").unlink()
    (folder / "more").symlink_to(tmp_path.parent / "more")
    paint(tmp_path.parent / "more" / "1.png", 9)
    assert len(read_data("plantvillage", tmp_path, partial=True).samples) == 7
