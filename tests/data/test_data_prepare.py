"""Manifests: what is written can be read again as the same data, and says what it is."""

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from craft.core.errors import DataError
from craft.data import Wanted, load_data, prepare, read_data, verify_images
from craft.data.additions import with_options, with_texts
from craft.data.sample import Data, Sample
from replicas import REPLICAS, class_folders, parquet, png


def same(one: Data, other: Data) -> None:
    for part in ("train", "validation", "test"):
        plain = [[replace(s, origin="", text="") for s in getattr(data, part)] for data in (one, other)]
        assert plain[0] == plain[1]
        assert [s.texts() for s in getattr(one, part)] == [s.texts() for s in getattr(other, part)]
    assert (one.classes, one.held_out, one.fingerprint) == (other.classes, other.held_out, other.fingerprint)


@pytest.mark.parametrize("name", ["iconqa", "ocr-vqa", "vqa-rad", "kvasir", "stanford-cars"])
def test_a_manifest_reads_as_what_it_was_made_of(name: str, tmp_path: Path) -> None:
    root = REPLICAS[name](tmp_path / "original")
    done = prepare(name, root, tmp_path / "m", Wanted(partial=True), progress=False)
    about = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert about == done.about and about["name"] == name and len(about["fingerprint"]) == 64
    ours = "stratified: 20% of the pictures for testing, seed 0"
    rule = {"kvasir": ours, "ocr-vqa": "the source's own; at most 30000 training images, seed 0"}
    assert about["split_rule"] == rule.get(name, "the source's own")
    same(load_data(tmp_path / "m", seed=3), load_data(name, root=root, seed=3, partial=True))
    assert load_data(tmp_path / "m").notes == load_data(name, root=root, partial=True).notes
    again = prepare(tmp_path / "m", None, tmp_path / "m2", progress=False)
    assert (tmp_path / "m" / "samples.jsonl").read_bytes() == (tmp_path / "m2" / "samples.jsonl").read_bytes()
    assert again.about["fingerprint"] == about["fingerprint"]


def test_split_ids_do_not_depend_on_where_pictures_lie(tmp_path: Path) -> None:
    made = [
        prepare(
            "eurosat",
            REPLICAS["eurosat"](tmp_path / n),
            tmp_path / f"m{n}",
            Wanted(partial=True),
            progress=False,
        ).about
        for n in "ab"
    ]
    assert made[0]["split_ids"] == made[1]["split_ids"] and made[0]["fingerprint"] == made[1]["fingerprint"]
    other = prepare(
        "eurosat", tmp_path / "a", tmp_path / "c", Wanted(split_seed=1, partial=True), progress=False
    ).about
    assert other["split_ids"] != made[0]["split_ids"]


def test_a_caption_is_added_once(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "a", "captions": ["a tree ", "A tree", "a tree"]}))
    given = [Sample("a", png(1), "q?", "an oak", captions=("a tree",))]
    once = with_texts(given, tmp_path / "t.jsonl")
    assert once[0].captions == ("a tree", "A tree") and with_texts(once, tmp_path / "t.jsonl") == once


def test_packed_pictures_are_written_out_once(tmp_path: Path) -> None:
    rows = [{"image": png(n % 5), "question": f"q{n}?", "answer": f"a{n % 3}"} for n in range(10)]
    parquet(tmp_path / "p" / "train.parquet", rows)
    prepare(tmp_path / "p", None, tmp_path / "m", progress=False)
    files = sorted((tmp_path / "m" / "images").rglob("*.png"))
    assert len(files) == 5 and files[0].read_bytes() in {png(n) for n in range(5)}
    (tmp_path / "m").rename(tmp_path / "moved")
    assert verify_images(load_data(tmp_path / "moved"), progress=False) == 5


def test_pictures_that_moved(tmp_path: Path) -> None:
    class_folders(tmp_path / "a", ("ash", "elm"))
    prepare(tmp_path / "a", None, tmp_path / "m", progress=False)
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(DataError, match="name an image that does not exist"):
        load_data(tmp_path / "m")
    assert len(load_data(tmp_path / "m", root=tmp_path / "b").all_samples()) == 10


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    class_folders(tmp_path / "a", ("ash", "elm"))
    with pytest.raises(DataError, match="contains other files"):
        prepare(tmp_path / "a", None, tmp_path / "a", progress=False)
    prepare(tmp_path / "a", None, tmp_path / "m", progress=False)
    prepare(tmp_path / "a", None, tmp_path / "m", progress=False)  # a manifest is
    limited = prepare(tmp_path / "a", None, tmp_path / "m", Wanted(train_limit=3), progress=False)
    assert limited.about["splits"] == {"train": 3, "test": 2}


def test_a_manifest_that_replaces_itself_keeps_its_pictures(tmp_path: Path) -> None:
    rows = [{"image": png(n), "question": f"q{n}?", "answer": f"a{n % 3}"} for n in range(6)]
    table = parquet(tmp_path / "train.parquet", rows)
    before = prepare(table, None, tmp_path / "m", progress=False).about
    (tmp_path / "link").symlink_to(tmp_path / "m")
    for place, name in (("m", "m"), ("link", "m"), ("m", "link")):
        again = prepare(tmp_path / place, None, tmp_path / name, progress=False).about
        assert again["fingerprint"] == before["fingerprint"]
        assert verify_images(load_data(tmp_path / "m"), progress=False) == 6


def test_texts_join_by_id_or_image(tmp_path: Path) -> None:
    root = REPLICAS["vqa-rad"](tmp_path / "v")
    rows = [
        {"id": "1", "statement": "There are three lesions."},
        {"image": "VQA_RAD Image Folder/synpic0.jpg", "captions": ["a chest", " a chest film "]},
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    prepare("vqa-rad", root, tmp_path / "m", Wanted(texts=[tmp_path / "texts.jsonl"]), progress=False)
    samples = {s.id: s for s in load_data(tmp_path / "m").all_samples()}
    assert samples["1"].texts() == ("There are three lesions.", "a chest", "a chest film")
    assert samples["2"].texts()[1:] == ("a chest", "a chest film") and samples["3"].captions == ()
    (tmp_path / "numbers.jsonl").write_text('\ufeff{"id": 1, "captions": ["a\u2028b"]}\n')
    numbered = {s.id: s for s in with_texts(list(samples.values()), tmp_path / "numbers.jsonl")}
    assert numbered["1"].captions[-1] == "a\u2028b"
    for row, words in (
        ({"id": "99", "captions": []}, "no sample has the id or image '99'"),
        ({"id": "1", "captions": "x"}, "'captions' must be a list of texts"),
        ({"id": "1", "statement": 3}, "'statement' must be a text"),
        ({"id": "1", "captions": ["\ud83d"]}, "a text contains half a character"),
    ):
        (tmp_path / "bad.jsonl").write_text(json.dumps(row))
        with pytest.raises(DataError, match=rf"bad\.jsonl:1: {words}"):
            with_texts(list(samples.values()), tmp_path / "bad.jsonl")


def test_texts_of_one_picture_do_not_go_to_others_of_its_name(tmp_path: Path) -> None:
    samples = [
        Sample(id=place, image=f"{place}1.jpg", question="q", answer="a") for place in ("", "x/", "y/")
    ]
    (tmp_path / "texts.jsonl").write_text('{"image": "1.jpg", "captions": ["by its whole path"]}\n')
    joined = with_texts(samples, tmp_path / "texts.jsonl")
    assert [sample.captions for sample in joined] == [("by its whole path",), (), ()]
    with pytest.raises(
        DataError, match=r"texts\.jsonl:1: several images are called 1\.jpg; add their folder"
    ):
        with_texts(samples[1:], tmp_path / "texts.jsonl")


def test_option_files_of_foci_are_taken_as_they_are(tmp_path: Path) -> None:
    root = REPLICAS["flowers102"](tmp_path / "f")
    names = ["pink primrose", "hard-leaved pocket orchid", "passion flower", "blackberry lily", "sunflower"]
    told: dict[str, list] = {}
    for number in range(14, 21):  # the test pictures, as in FOCI's file
        right = names[(number - 1) % 5]
        wrong = [name for name in names if name != right][:3]
        entry = {"image": f"jpg/image_{number:05d}.jpg", "options": [right, *wrong], "groundtruth": right}
        told.setdefault(right, []).append(entry)
    (tmp_path / "options.json").write_text(json.dumps(told))
    wanted = Wanted(options=tmp_path / "options.json", partial=True)
    prepare("flowers102", root, tmp_path / "m", wanted, progress=False)
    data = load_data(tmp_path / "m", distractors="random")
    for sample in data.test:
        entry = next(e for e in told[str(sample.label)] if e["image"].endswith(sample.id))
        assert set(sample.choices) == set(entry["options"])
    assert {s.choices.index(s.answer) for s in data.test} != {0}  # the right one does not stay first
    assert all(not set(s.choices) & set(data.held_out) for s in data.train)
    for damage, words in (
        ({"x": [{"image": "image_00014.jpg", "options": ["tulip"]}]}, "the option 'tulip' is not a class"),
        ({"x": ["y"]}, "is not an option file of FOCI's format"),
        ({}, "names no image of this data"),
        ({"x": [{"image": "image_00014.jpg", "options": ["sunflower", "passion flower"]}]}, "the data says"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(damage))
        with pytest.raises(DataError, match=words):
            with_options(load_data("flowers102", root=root, partial=True).test, tmp_path / "bad.json")


def test_option_files_know_classes_in_any_script(tmp_path: Path) -> None:
    samples = read_data(
        class_folders(tmp_path / "pictures", ("C", "C++", "\u6a61\u6811", "\u6986\u6811"), each=1)
    ).samples
    told = {
        s.label: [{"image": s.image, "options": [s.label, "C++" if s.label != "C++" else "C"]}]
        for s in samples
    }
    (tmp_path / "o.json").write_text(json.dumps(told))
    found = {s.label: s.distractors for s in with_options(samples, tmp_path / "o.json")}
    assert found == {"C": ("C++",), "C++": ("C",), "\u6a61\u6811": ("C++",), "\u6986\u6811": ("C++",)}


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Pictures over HTTP on the loopback device, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            found = self.path.startswith("/p")
            self.send_response(200 if found else 404)
            if self.path == "/p5":  # the connection breaks before all is sent
                self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(png(int(self.path[2:3])) if found else b"gone")

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()
    httpd.server_close()


def test_urls_are_fetched_once_and_only_when_asked(
    tmp_path: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft.data.download.is_public", lambda address: True)
    place, asked = server
    rows = [{"image": f"{place}/p{n % 4}", "question": f"q{n}?", "answer": f"a{n % 2}"} for n in range(8)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"8 of 8 rows.*craft data prepare --download"):
        load_data(tmp_path / "q.jsonl")
    assert asked == []
    prepare(tmp_path / "q.jsonl", None, tmp_path / "m", Wanted(download=True), progress=False)
    prepare(tmp_path / "q.jsonl", None, tmp_path / "m", Wanted(download=True), progress=False)
    assert sorted(asked) == ["/p0", "/p1", "/p2", "/p3"]
    assert verify_images(load_data(tmp_path / "m"), progress=False) == 4
    (tmp_path / "b.jsonl").write_text(json.dumps(rows[0] | {"image": f"{place}/gone"}))
    with pytest.raises(DataError, match=r"b\.jsonl:1: http.*/gone cannot be downloaded \(HTTP Error 404"):
        prepare(tmp_path / "b.jsonl", None, tmp_path / "n", Wanted(download=True), progress=False)
    assert not (tmp_path / "n").exists()
    for name, words in (("p5", "cut short"), ("a b", "cannot be downloaded")):
        (tmp_path / "b.jsonl").write_text(json.dumps(rows[0] | {"image": f"{place}/{name}"}))
        with pytest.raises(DataError, match=rf"b\.jsonl:1: http.*{words}"):
            prepare(tmp_path / "b.jsonl", None, tmp_path / "n", Wanted(download=True), progress=False)
    assert not (tmp_path / "n-pictures").exists()
