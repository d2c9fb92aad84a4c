"""What `check` finds beside damage, `stats`, and that unusual pictures are handled."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from craft.core.errors import DataError
from craft.data import (
    Finding,
    Sample,
    check,
    check_data,
    contact_sheet,
    data_stats,
    draw_stats,
    load_data,
    showcase,
)
from craft.data.check import answer_tokens
from craft.data.compose import whole
from craft.data.load import read_data
from replicas import class_folders, paint, pixels


def found(root: Path, **options: bool) -> dict[str, Finding]:
    data = load_data(root, unseen_fraction=0)
    return {finding.kind: finding for finding in check_data(data, progress=False, **options)}


def test_good_data_has_no_findings(tmp_path: Path) -> None:
    assert found(class_folders(tmp_path, ("ash", "elm", "oak"))) == {}


def test_unusual_pictures_are_handled_and_named(tmp_path: Path) -> None:
    root = class_folders(tmp_path, ("ash", "elm"), each=8, ending=".png")
    frames = [Image.fromarray(pixels(n, 16)) for n in range(20, 25)]
    frames[0].save(root / "ash" / "a.gif", save_all=True, append_images=frames[1:2])
    frames[2].convert("CMYK").save(root / "ash" / "b.jpg")
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 200).save(root / "ash" / "c.png")
    frames[3].convert("RGBA").save(root / "ash" / "d.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    frames[4].save(root / "ash" / "e.jpg", exif=exif)
    Image.fromarray(pixels(3, 4)).save(root / "ash" / "f.png")
    Image.fromarray(pixels(26, 16)).save(root / "ash" / "g.png", exif=b"broken")  # nothing to say of it
    findings = found(root)
    assert {name: (f.count, f.warning, f.text) for name, f in findings.items()} == {
        "animated": (1, False, "1 image is animated: the first frame of an animation is used"),
        "CMYK": (1, False, "1 image is CMYK: CMYK is converted to RGB"),
        "16-bit": (1, False, "1 image is 16-bit: 16-bit grey is scaled to 8 bits"),
        "with transparency": (
            1,
            False,
            "1 image is with transparency: transparency is dropped, as VILA-U does",
        ),
        "EXIF-rotated": (1, False, "1 image is EXIF-rotated: the EXIF rotation is applied"),
        "tiny": (1, True, "1 image has a side of fewer than 8 pixels"),
    }
    assert findings["CMYK"].where == (str(root / "ash" / "b.jpg"),)


def test_an_animation_whose_later_frames_are_damaged_is_handled(tmp_path: Path) -> None:
    root = class_folders(tmp_path, ("ash", "elm"), each=4)
    frames = [Image.fromarray(pixels(n, 16)) for n in range(20, 23)]
    for ending in ("gif", "tiff"):
        place = root / "ash" / f"a.{ending}"
        frames[0].save(place, save_all=True, append_images=frames[1:])
        place.write_bytes(place.read_bytes()[:-500])
    findings = found(root)
    assert findings["animated"].where == (str(root / "ash" / "a.gif"),)
    assert findings["of several pages"].where == (str(root / "ash" / "a.tiff"),)
    assert findings["of several pages"].warning


def test_leakage_by_content_and_by_looks(tmp_path: Path) -> None:
    train, test = tmp_path / "train", tmp_path / "test"
    for n in range(4):
        for name, shift in (("ash", 0), ("elm", 100)):
            paint(train / name / f"{n}.png", n + shift, 32)
            paint(test / name / f"{n}.png", n + shift + 50, 32)
    smooth = Image.fromarray(pixels(7, 8)).resize((64, 64), Image.Resampling.BICUBIC)
    smooth.save(train / "ash" / "near.png")
    smooth.point(lambda value: value // 2).save(
        test / "elm" / "darker.png"
    )  # the same shape, another picture
    smooth.save(test / "ash" / "near.jpg", quality=80)
    (test / "elm" / "same.png").write_bytes((train / "elm" / "0.png").read_bytes())
    findings = found(tmp_path)
    assert set(findings) == {"leakage", "near-duplicates"}
    assert findings["leakage"].count == 1 and findings["leakage"].warning
    assert findings["near-duplicates"].where == (str(test / "ash" / "near.jpg"),)
    assert set(found(tmp_path, decode=False)) == {"leakage"}


def test_classes_that_are_rare_uneven_numbered_or_double(tmp_path: Path) -> None:
    class_folders(tmp_path, ("ash",), each=50, ending=".png")
    for n in range(4):
        paint(tmp_path / ("elm", "7")[n % 2] / f"{n}.png", 500 + n)
    paint(tmp_path / "oak" / "1.png", 9000)
    (tmp_path / "elm" / "again.png").write_bytes((tmp_path / "oak" / "1.png").read_bytes())
    findings = found(tmp_path)
    assert findings["rare classes"].where == ("oak (1)",)
    assert findings["imbalance"].text == "the largest class is 50 times the smallest"
    assert findings["numbered classes"].where == ("7",)
    assert findings["two classes"].count == 1


def test_when_looking_stops_early_the_rest_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = load_data(class_folders(tmp_path, ("ash", "elm"), each=60), unseen_fraction=0).all_samples()
    opened: list[str] = []
    stopped = threading.Event()

    def look(sample: Sample, *_: bool) -> check.Look:
        opened.append(sample.id)
        if len(opened) > 3:
            stopped.wait(1)  # so that the threads are not done before we stop
        return check.Look("")

    monkeypatch.setattr(check, "_look", look)
    looking = check.looks(samples, "trees", progress=False)
    next(looking)
    looking.close()  # as Ctrl-C or too many mistakes do
    stopped.set()
    assert len(opened) < len(samples) / 2


def test_long_answers(tmp_path: Path) -> None:
    rows = []
    for n in range(6):
        rows.append(
            {"image": paint(tmp_path / f"{n}.png", n), "question": "Why?", "split": ["train", "test"][n % 2]}
        )
        rows[-1]["answer"] = "because it grows there every year" if n == 3 else f"tree {n}"
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    finding = found(tmp_path / "q.jsonl")["long answers"]
    assert finding.count == 1 and finding.where == (f"{tmp_path}/q.jsonl:4",)


def test_stats_count_and_draw(tmp_path: Path) -> None:
    data = load_data(class_folders(tmp_path / "pictures", ("ash", "elm", "oak"), each=6), unseen_fraction=0)
    stats = data_stats(data, progress=False)
    assert stats["classes"] == {"ash": 6, "elm": 6, "oak": 6} and stats["images"] == 18
    assert stats["width"] == {"least": 12, "median": 12.0, "most": 12} and stats["options"] == {3: 18}
    assert stats["answer words"]["most"] == 1
    with Image.open(draw_stats(data, tmp_path / "stats.png")) as drawn:
        assert drawn.size[0] > 800 and len(set(drawn.convert("L").resize((60, 40)).tobytes())) > 5
    chosen = showcase(data, 7)
    assert [s.label for s in chosen] == ["ash", "elm", "oak", "ash", "elm", "oak", "ash"]
    assert contact_sheet(chosen, tmp_path / "sheet.png", columns=4).width > 300


def test_answers_of_several_lines_are_drawn_in_one(tmp_path: Path) -> None:
    sample = Sample(id="a", image=pixels(1), question="Why?", answer="For two reasons:\n1. sun\n2. rain")
    sheet = contact_sheet([sample])
    assert sheet.size == contact_sheet([replace(sample, answer="sun")]).size
    assert len(set(sheet.convert("L").crop((4, 102, 100, 114)).tobytes())) > 5  # something is written


def test_prices_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    rows = [
        {"image": paint(tmp_path / f"{n}.png", n), "question": "What does it cost?", "answer": answer}
        for n, answer in enumerate(["$5_$ off", "from $4^ to $6", "$3"])
    ]
    (tmp_path / "$1_$.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert draw_stats(load_data(tmp_path / "$1_$.jsonl"), tmp_path / "stats.png").is_file()


def test_class_names_longer_than_a_reply(tmp_path: Path) -> None:
    for name in ("melanocytic nevi", "Apple___Cedar_apple_rust", "oak"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for n in range(5):
            paint(tmp_path / "data" / name / f"{n}.png", n + 10 * len(name))
    everything = whole(read_data(tmp_path / "data"))
    count = answer_tokens("craft-tiny/qwen2")
    finding = next(f for f in check_data(everything, tokens=count) if f.kind == "long answers")
    for part in (
        "67 %",
        "'melanocytic nevi' (8 tokens)",
        "apple rust' (9 tokens)",
        "--max-new-tokens 9",
        "letter",
    ):
        assert part in finding.text
    assert not [f for f in check_data(everything, tokens=count, letters=True) if f.kind == "long answers"]
    for wrong in ("craft-tiny/nothing", str(tmp_path), "evil/model"):
        with pytest.raises(DataError, match="--model"):
            answer_tokens(wrong)
