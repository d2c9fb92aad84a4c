"""`craft report`: one page that needs nothing else, in which no text of a run becomes markup."""

import base64
import html.parser
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cli.conftest import run
from craft.core.errors import CheckpointError, DataError
from craft.core.text import table_row
from craft.evaluation.report import Report
from craft.pages.figure import draw_curves
from craft.pages.report import report, sections_of

HOSTILE = "<script>alert('1')</script>&amp;\"><img src=http://x.org/y>"


class Reader(html.parser.HTMLParser):
    """Which elements with which attributes a page has, its text, and whether all are closed."""

    def __init__(self):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "path", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def needs_nothing(text):
    """No script, nothing from another place, and a policy that forbids both."""
    reader = read(text)
    names = {tag for tag, _ in reader.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in reader.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#s")), (tag, value)
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text
    return reader


def escaped(text):
    """Any text as Markdown of one line that shows it."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def result(folder, text, name="table1"):
    """A result of the paper's experiments with its page."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"experiment": name, "provenance": {}}))
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return folder


def body(folder):
    """The HTML of the one section about a folder."""
    (section,) = sections_of(folder)
    return section.body


@pytest.fixture(scope="module")
def evaluated(family, encoder, pictures, tmp_path_factory):
    """What `craft eval --out` and `craft judge` write."""
    out = tmp_path_factory.mktemp("evaluated")
    said = run("eval", family / "qwen2", "--encoder", encoder[0], "--limit", "6", "--out", out / "eval")
    assert said.status == 0, said.err
    said = run("judge", encoder[0], "--limit", "3", "--max-new-tokens", "5", "--out", out / "judged")
    assert said.status == 0, said.err
    return out


def test_a_page_of_a_run_an_evaluation_and_a_judging(encoder, evaluated, tmp_path):
    said = run("report", encoder[0], evaluated, "--out", tmp_path / "page.html", "--title", "R & D")
    assert said.status == 0, said.err
    text = (tmp_path / "page.html").read_text()
    reader = needs_nothing(text)
    words = " ".join(" ".join(reader.texts).split())
    record = json.loads((encoder[0] / "run.json").read_text())
    figures = json.loads((evaluated / "eval" / "report.json").read_text())
    assert "R & D" in words and record["surrogate"] in words
    assert ", ".join(record["held_out"]) in words and "byte for byte unchanged" in words
    assert f"{100 * figures['accuracy']:.1f}" in words
    pictures = [attributes for tag, attributes in reader.elements if tag == "img"]
    assert [one["class"] for one in pictures] == ["whole"] + ["small"] * 3
    assert all(f"{name}: " in pictures[0]["alt"] for name in ("loss", "sal", "commitment"))
    assert "Correctness and Presence only" in words


def test_an_evaluation_with_probabilities_shows_their_reliability(evaluated, tmp_path):
    shutil.copytree(evaluated / "eval", tmp_path / "eval")
    path = tmp_path / "eval" / "report.json"
    record = json.loads(path.read_text())
    assert "<img" not in body(tmp_path / "eval")
    calibration = Report.of(scored(), {}).calibration(2.0)
    record["reports"][0]["calibration"] = calibration
    path.write_text(json.dumps(record))
    assert "seen classes, 40 questions: ECE" in body(tmp_path / "eval")
    calibration["seen"]["before"]["bins"][0][2] = 10**12
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="a bin of 1000000000000 questions"):
        body(tmp_path / "eval")


def scored():
    """Answers to questions about seen classes, with a score for each option."""
    random = np.random.default_rng(0)
    marks = {"strict": True, "lenient": True, "unparseable": False, "seen": True}
    return [
        {
            **marks,
            "id": str(n),
            "choices": ["a", "b"],
            "correct": "a",
            "scores": random.normal(size=2).tolist(),
        }
        for n in range(40)
    ]


def test_the_folder_that_one_is_in_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "my-run").mkdir()
    (tmp_path / "my-run" / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "my-run")
    assert "my-run" in report(["."], "page.html").read_text()


def test_text_of_runs_is_never_markup(encoder, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    record = json.loads((encoder[0] / "run.json").read_text())
    record |= {"surrogate": HOSTILE, "held_out": [HOSTILE], "config": {HOSTILE: HOSTILE}}
    (folder / "run.json").write_text(json.dumps(record))
    reader = needs_nothing(report([folder], tmp_path / "page.html", HOSTILE).read_text())
    assert " ".join(reader.texts).count(HOSTILE) == 6  # title, heading, surrogate, held out, name and value


def test_text_of_answers_is_never_markup(evaluated, tmp_path):
    folder = tmp_path / "judged"
    shutil.copytree(evaluated / "judged", folder)
    (path,) = folder.glob("report-*.json")
    record = json.loads(path.read_text())
    record["settings"]["note"] = HOSTILE
    record["samples"] = [{**row, "truth": HOSTILE, "response": HOSTILE} for row in record["samples"]]
    path.write_text(json.dumps(record))
    reader = needs_nothing(report([folder], tmp_path / "page.html").read_text())
    assert " ".join(reader.texts).count(HOSTILE) == 7


def test_the_demo_with_its_table_and_picture(tmp_path):
    figures = {name: {"accuracy": 0.25, "interval": [0.125, 0.5], "count": 8} for name in ("all", "seen")}
    row = {
        "backbone": HOSTILE,
        "role": "surrogate",
        "encoder": "zero-shot",
        "figures": figures,
        "chance": 0.25,
    }
    record = {"data": "blobs", "rows": [row], "held_out": [], "keep_ratio": 1.0, "seconds": {"all": 3.0}}
    record |= {"frozen": {"a": {"codebook": True, "llm": False}}, "text_unchanged": {"a": True}}
    (tmp_path / "demo.json").write_text(json.dumps(record))
    Image.new("RGB", (4, 4)).save(tmp_path / "demo.png")
    reader = needs_nothing(report([tmp_path], tmp_path / "page.html").read_text())
    words = " ".join(" ".join(reader.texts).split())
    assert "Demo on blobs" in words and HOSTILE in words
    assert "25.0 [12.5, 50.0]" in words
    assert "The llm of a changed" in words and "codebook of a" not in words
    assert sum(tag == "img" for tag, _ in reader.elements) == 1


def test_a_result_is_its_page_with_pictures_embedded(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "table1-1.png")
    (tmp_path / "table1-2.png").write_bytes(b"GIF89a")
    result(tmp_path, "# Codes\n\ntext\n\n![one](table1-1.png)\n\n![two](table1-2.png)\n")
    reader = needs_nothing(report([tmp_path], tmp_path / "page.html").read_text())
    assert [attributes["alt"] for tag, attributes in reader.elements if tag == "img"] == ["one"]
    assert "Codes" in reader.texts and "The image table1-2.png is missing." in reader.texts


def test_pages_of_results_in_markdown(tmp_path):
    html = body(
        result(
            tmp_path,
            "# t\n\n## A *b* `c<d>`\n\n- one\n- **two**\n\nx [y](z.md) 2 * 3 * 4 &amp; <b>c</b>\n\n"
            "| a | b |\n| --- | ---: |\n| \\<i> | 1\\|2 |\n",
        )
    )
    assert "<h3>A <em>b</em> <code>c&lt;d&gt;</code></h3>" in html
    assert "<li>one</li>" in html and "<li><strong>two</strong></li>" in html
    assert "<p>x y 2 * 3 * 4 &amp;amp; &lt;b&gt;c&lt;/b&gt;</p>" in html
    assert "<td>&lt;i&gt;</td>" in html and ">1|2</td>" in html
    assert "<h1>" not in html


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4))
def test_any_text_in_a_table_of_a_page_comes_out_as_it_went_in(tmp_path_factory, texts):
    rows = [["a", "b"], ["---", "---"], *([escaped(text), "1"] for text in texts)]
    folder = result(tmp_path_factory.getbasetemp() / "any", "# x\n\n" + "\n".join(map(table_row, rows)))
    reader = read(body(folder))
    assert {tag for tag, _ in reader.elements} == {"table", "thead", "tbody", "tr", "th", "td"}
    words = " ".join(" ".join(reader.texts).split())
    for text in texts:
        assert " ".join(text.replace("\x00", "").split()) in words


@settings(max_examples=25, deadline=None)
@given(st.text(alphabet="ab<>&\"'`!|[]()#*_~:/\\\n -1", max_size=60))
def test_no_markdown_makes_a_page_refer_to_anything(tmp_path_factory, text):
    reader = read(body(result(tmp_path_factory.getbasetemp() / "no", "# x\n" + text)))
    for _, attributes in reader.elements:
        assert not {"src", "href"} & attributes.keys()


def test_curves_of_what_changes():
    lines = [{"step": step, "loss": 1 / step, "lr": 0.1, "sal": None} for step in (1, 2, 4)]
    png, about = draw_curves([*lines, {"step": 5, "loss": float("nan")}])
    assert about == "loss: 1 → 0.25" and Image.open(io.BytesIO(png)).format == "PNG"
    assert draw_curves([{"step": 1, "loss": 5.0}]) == (b"", "")


def test_links_that_lead_outside_are_not_followed(encoder, tmp_path):
    """A folder from somebody else must not pull files of this machine into the page."""
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    result(outside, "# secret\n\nsecret\n")
    Image.new("RGB", (4, 4)).save(outside / "secret.png")
    folder.mkdir()
    (folder / "table1.json").symlink_to(outside / "table1.json")
    (folder / "below").symlink_to(outside)
    assert sections_of(folder) == []
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text("{}")
    (folder / "run" / "metrics.jsonl").symlink_to(encoder[0] / "metrics.jsonl")
    assert "<img" not in body(folder)
    assert "<img" not in body(
        result(folder / "run" / "r", f"# a\n\n![s](../secret.png) ![s]({outside}/secret.png)")
    )
    (folder / "run" / "r" / "table1.md").unlink()
    (folder / "run" / "r" / "table1.md").symlink_to(outside / "table1.md")
    with pytest.raises(CheckpointError, match=r"table1\.md is missing"):
        sections_of(folder / "run" / "r")


def test_only_regular_png_files_of_the_folder_are_in_the_page(tmp_path):
    """A `demo.png` that leads elsewhere, or is something else, is not in the page, and stops nothing."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    figures = {"all": {"accuracy": 0.25, "interval": [0.125, 0.5], "count": 8}}
    row = {"backbone": "b", "role": "surrogate", "encoder": "zero-shot", "figures": figures, "chance": 0.25}
    record = {"data": "blobs", "rows": [row], "held_out": [], "keep_ratio": 1.0, "seconds": {"all": 3.0}}
    record |= {"frozen": {}, "text_unchanged": {}}
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "demo.json").write_text(json.dumps(record))
    picture = folder / "demo.png"

    def jpeg():
        Image.new("RGB", (4, 4)).save(picture, format="JPEG")

    ways = [
        lambda: picture.symlink_to(secret),
        lambda: picture.symlink_to("../secret.png"),
        lambda: picture.symlink_to("/dev/zero"),
        lambda: picture.symlink_to("nowhere.png"),
        lambda: picture.symlink_to("demo.png"),
        lambda: os.mkfifo(picture),
        lambda: picture.mkdir(),
        lambda: picture.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        jpeg,
    ]
    for make in ways:
        make()
        assert "<img" not in body(folder)
        picture.rmdir() if picture.is_dir() else picture.unlink()
    Image.new("RGB", (4, 4)).save(folder / "own.png")
    picture.symlink_to("own.png")
    assert "<img" in body(folder)


def test_a_png_is_drawn_anew_and_a_damaged_one_is_named(tmp_path):
    result(tmp_path, "# Codes\n\n![one](table1-1.png)\n")
    info = PngInfo()
    info.add_text("Comment", "secret")
    Image.new("RGBA", (4, 4), (1, 2, 3, 4)).save(tmp_path / "table1-1.png", pnginfo=info)
    whole = (tmp_path / "table1-1.png").read_bytes()
    (tmp_path / "table1-1.png").write_bytes(whole + b"secret")
    shown = base64.b64decode(re.search(r'base64,([^"]+)"', body(tmp_path))[1])
    assert b"secret" not in shown and Image.open(io.BytesIO(shown)).getpixel((0, 0)) == (1, 2, 3, 4)
    (tmp_path / "table1-1.png").write_bytes(whole[:40])
    with pytest.raises(DataError, match=r"table1-1\.png is not a complete PNG"):
        body(tmp_path)


def test_files_that_are_no_results_do_not_hang_or_fill_memory(tmp_path):
    with pytest.raises(DataError, match="neither a file nor a folder"):
        sections_of(Path("/dev/zero"))
    os.mkfifo(tmp_path / "transfer.json")
    (tmp_path / "demo.json").symlink_to("/dev/zero")
    assert sections_of(tmp_path) == []
    with open(tmp_path / "big.json", "wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(CheckpointError, match=r"big\.json has 300 MiB"):
        sections_of(tmp_path)


def test_half_characters_and_odd_names_in_json_make_a_page(evaluated, tmp_path):
    folder = tmp_path / "judged"
    shutil.copytree(evaluated / "judged", folder)
    lines = (folder / "answers.jsonl").read_text().splitlines()
    odd = ["x" * 5000 + ".png", "a\x00b.png", "/dev/zero"]
    rows = [{**json.loads(line), "image": name} for line, name in zip(lines, odd, strict=True)]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path,) = folder.glob("report-*.json")
    record = json.loads(path.read_text())
    record["samples"] = [{**row, "response": "\ud83d cut"} for row in record["samples"]]
    path.write_text(json.dumps(record))
    text = report([folder], tmp_path / "page.html").read_text()
    assert "\\ud83d cut" in text and "<img" not in text


def test_pictures_outside_the_folder_are_left_alone(evaluated, tmp_path):
    """A judged folder from somebody else must not pull files of this machine into the page."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    folder = tmp_path / "judged"
    folder.mkdir()
    name = next((evaluated / "judged").glob("report-*.json")).name
    (folder / name).write_text((evaluated / "judged" / name).read_text())
    rows = [json.loads(line) for line in (evaluated / "judged" / "answers.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "image": "../secret.png"}) for row in rows]
    (folder / "answers.jsonl").write_text("\n".join(lines) + "\n")
    assert "<img" not in body(folder)


def test_large_pictures_of_judged_answers_do_not_make_a_large_page(evaluated, tmp_path):
    folder = tmp_path / "judged"
    shutil.copytree(evaluated / "judged", folder)
    noise = np.random.default_rng(0).integers(0, 255, (900, 1500, 3), dtype=np.uint8)
    for file in (folder / "images").glob("*.png"):
        Image.fromarray(noise).save(file)
    html = body(folder)
    count = html.count("<img")
    assert count > 1 and len(html) < count * 150_000
    shown = re.search(r'src="data:image/png;base64,([^"]+)"', html)[1]
    assert Image.open(io.BytesIO(base64.b64decode(shown))).size == (216, 130)


def test_mistakes(tmp_path):
    assert "at least one" in run("report").complaint
    assert "nothing at" in run("report", tmp_path / "no", "--out", tmp_path / "p.html").complaint
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="nothing to report"):
        report([tmp_path], tmp_path / "p.html")
    (tmp_path / "other.json").write_text('{"experiment": "table1", "provenance": {}}')
    with pytest.raises(CheckpointError, match="damaged"):
        report([tmp_path], tmp_path / "p.html")
