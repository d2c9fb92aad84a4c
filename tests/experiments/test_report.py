"""`craft report`: one page that needs nothing else, in which no text of a run becomes markup."""

import base64
import html.parser
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from craft.experiments.publish import escaped, table
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cli.conftest import run
from craft.core.errors import CheckpointError, DataError
from craft.experiments.report import report, sections_of
from craft.experiments.report_html import Section, curve, markdown, page, pairs

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


@pytest.fixture(scope="module")
def evaluated(family, encoder, pictures, tmp_path_factory):
    """What `craft eval --out` and `craft judge` leave."""
    out = tmp_path_factory.mktemp("evaluated")
    place = str(encoder[0])
    said = run("eval", family / "qwen2", "--encoder", place, "--limit", "6", "--out", out / "eval")
    assert said.status == 0, said.err
    words = ("--limit", "3", "--max-new-tokens", "5", "--out", out / "judged")
    said = run("judge", place, *words)
    assert said.status == 0, said.err
    return out


def test_a_page_of_a_run_an_evaluation_and_a_judging(encoder, evaluated, tmp_path):
    said = run("report", encoder[0], evaluated, "--out", tmp_path / "page.html", "--title", "R & D")
    assert said.status == 0, said.err
    text = (tmp_path / "page.html").read_text()
    reader = needs_nothing(text)
    words = " ".join(" ".join(reader.texts).split())
    told = json.loads((encoder[0] / "run.json").read_text())
    figures = json.loads((evaluated / "eval" / "report.json").read_text())
    assert "R & D" in words and told["surrogate"] in words
    assert ", ".join(told["held_out"]) in words and "byte for byte unchanged" in words
    assert f"{100 * figures['accuracy']:.1f}" in words
    assert [dict(a).get("class") for t, a in reader.elements if t == "img"] == ["small"] * 3
    assert sum(tag == "svg" for tag, _ in reader.elements) >= 3  # loss and its parts over steps
    assert "Correctness and Presence only" in words


def test_the_folder_that_one_is_in_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "my-run").mkdir()
    (tmp_path / "my-run" / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "my-run")
    assert "my-run" in report(["."], "page.html").read_text()


def test_text_of_runs_is_never_markup(encoder, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    told = json.loads((encoder[0] / "run.json").read_text())
    told |= {"surrogate": HOSTILE, "held_out": [HOSTILE], "config": {HOSTILE: HOSTILE}}
    (folder / "run.json").write_text(json.dumps(told))
    reader = needs_nothing(report([folder], tmp_path / "page.html", HOSTILE).read_text())
    assert " ".join(reader.texts).count(HOSTILE) == 6  # title, heading, surrogate, held out, name and value


def test_a_result_is_its_page_with_pictures_inlined(plan, tmp_path):
    from craft.experiments import EXPERIMENTS, publish

    publish("fig7", EXPERIMENTS["fig7"], plan, tmp_path)
    reader = needs_nothing(report([tmp_path], tmp_path / "page.html").read_text())
    assert sum(tag == "img" for tag, _ in reader.elements) == 1
    assert any("codes of pictures" in text for text in reader.texts)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4))
def test_any_text_in_a_table_of_a_page_comes_out_as_it_went_in(tmp_path_factory, texts):
    made = markdown(
        "# x\n\n" + table(["a", "b"], [[escaped(text), "1"] for text in texts]),
        tmp_path_factory.getbasetemp(),
    )
    reader = read(page("t", "a", [Section("s", "k", made)]))
    assert {tag for tag, _ in reader.elements} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "p", "ul", "li", "a", "span", "section", "h2",
        "div", "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    words = " ".join(" ".join(reader.texts).split())
    for text in texts:
        assert " ".join(text.replace("\x00", "").split()) in words


def test_markdown_of_our_pages():
    made = markdown(
        "# t\n\n## A *b* `c<d>`\n\n- one\n- **two**\n\nx [y](z.md) 2 * 3 * 4\n\n![p](no.png)",
        Path("."),
    )
    assert "<h3>A <em>b</em> <code>c&lt;d&gt;</code></h3>" in made
    assert "<li>one</li><li><strong>two</strong></li>" in made
    assert "<p>x y 2 * 3 * 4</p>" in made and "no.png is not there" in made


def test_curves_and_pairs():
    drawn = curve("loss", [(1.0, 2.0), (2.0, 1.0), (3.0, 1.0)])
    assert "2 at first, 1 at last" in drawn and len(re.findall(r"[\d.]+,[\d.]+", drawn)) >= 3
    assert curve("flat", [(5.0, 1.0)])
    assert "b" not in pairs({"a": 1, "b": None}).replace("tbody", "").replace("table", "")


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
    (section,) = sections_of(folder)
    assert "<img" not in section.body


def test_large_pictures_of_judged_answers_do_not_make_a_large_page(evaluated, tmp_path):
    folder = tmp_path / "judged"
    shutil.copytree(evaluated / "judged", folder)
    noise = np.random.default_rng(0).integers(0, 255, (900, 1500, 3), dtype=np.uint8)
    for file in (folder / "images").glob("*.png"):
        Image.fromarray(noise).save(file)
    (section,) = sections_of(folder)
    count = section.body.count("<img")
    assert count > 1 and len(section.body) < count * 150_000
    shown = re.search(r'src="data:image/png;base64,([^"]+)"', section.body)[1]
    assert Image.open(io.BytesIO(base64.b64decode(shown))).size == (216, 130)


def test_mistakes_are_told(tmp_path):
    assert "at least one" in run("report").complaint
    assert "nothing at" in run("report", tmp_path / "no", "--out", tmp_path / "p.html").complaint
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="nothing to report"):
        report([tmp_path], tmp_path / "p.html")
    (tmp_path / "other.json").write_text('{"experiment": "table1", "provenance": {}}')
    with pytest.raises(CheckpointError, match="damaged"):
        report([tmp_path], tmp_path / "p.html")
