"""What is printed is whole: every table at every width, and no text that a terminal would obey."""

import json
import re
import sys
import unicodedata
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from cli.conftest import FAST, paint
from craft.cli import output
from craft.cli.output import show_json, show_line, show_pairs, show_table, show_text
from craft.core.text import visible
from craft.evaluation.language import INSTRUCTIONS
from paper.cli import main as paper

WIDTHS = range(40, 201, 4)
FAST_MATRIX = tuple(word.replace("batch_size", "adapt.batch_size") for word in FAST)
SHORT = ("--max-new-tokens", "5", "--batch-size", "4", "--device", "cpu")


def printed(capsys, monkeypatch, width, *table, **more):
    """What `show_table` prints at a width; None is a pipe."""
    if width is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    show_table(*table, **more)
    return capsys.readouterr().out


def read_back(text, title, columns, prose=()):
    """The rows of a printed table, from its lines; sentences that were broken are put together."""
    lines = text.split("\n")
    assert lines.pop() == ""
    if title:
        assert lines.pop(0) == visible(title)
    heads = [visible(name) for name in columns]
    if not lines or not lines[0].startswith("┏"):
        return blocks_back(lines, heads)
    rows = [[cell.strip(" ") for cell in line[1:-1].split("│")] for line in lines if line.startswith("│")]
    top = [[cell.strip(" ") for cell in line[1:-1].split("┃")] for line in lines if line.startswith("┃")]
    assert [" ".join(filter(None, parts)) for parts in zip(*top, strict=True)] == [
        h.strip(" ") for h in heads
    ]
    whole = []
    for row in rows:
        goes_on = (
            prose and whole and not any(c for c, name in zip(row, columns, strict=True) if name not in prose)
        )
        if goes_on and len(prose) < len(columns):
            whole[-1] = [f"{a} {b}".strip() for a, b in zip(whole[-1], row, strict=True)]
        else:
            whole.append(row)
    return whole


def blocks_back(lines, heads):
    """The rows of blocks: the first line of each has no indent."""
    rows = []
    for line in lines:
        if not line.startswith("  "):
            rows.append(dict.fromkeys(heads, ""))
        name = next(name for name in heads if line.removeprefix("  ").startswith(f"{name}: "))
        rows[-1][name] = line.removeprefix("  ").removeprefix(f"{name}: ").strip(" ")
    return [[row[name] for name in heads] for row in rows]


def as_printed(rows):
    return [[visible(cell).strip(" ") for cell in row] for row in rows]


@pytest.fixture(scope="module")
def tables(craft, family, encoder, pictures, tmp_path_factory):
    """Every table that the verbs print, with small models and a class name of 60 characters."""
    folder, calls, run = tmp_path_factory.mktemp("tables"), [], encoder[0]
    long = paint(
        folder / "猫 and [bold]dogs[/]",
        {
            "Aston Martin V8 Vantage Convertible 2012 " + "x" * 20: (9, 9, 9),
            "犬": (200, 9, 9),
            "é́": (9, 200, 9),
        },
    )
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(("craft.cli.", "paper.")) and getattr(module, "show_table", None) is show_table
    ]

    def record(title, columns, rows, sections=(), prose=()):
        calls.append((title, columns, rows, sections, prose))

    def do(*words, main=None):
        said = craft(*words) if main is None else craft(*words, main=main)
        assert said.status == 0, said.err

    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "show_table", record)
        asked = ("--limit", "6", "--out")
        do(
            "eval",
            family / "llama",
            "--like",
            run,
            *asked,
            folder / "base",
            "--protocol",
            "both",
            "--classes",
        )
        do("eval", family / "llama", "--encoder", run, *asked, folder / "adapted")
        do("eval", family / "llama", "--data", pictures, long, "--limit", "4", "--seeds", "0,1", "--classes")
        do("compare", folder / "base", folder / "adapted")
        do("transfer", "--encoders", run, "--backbones", family / "llama", family / "qwen2", "--limit", "4")
        do("transfer", "--surrogates", family / "llama", "--data", pictures, "--dry-run", *FAST_MATRIX)
        do("judge", run, "--limit", "3", "--out", folder / "judged", *SHORT)
        do("adapt", family / "llama", "--data", long, "--dry-run", *FAST)
        do(
            "demo",
            "--surrogate",
            family / "llama",
            "--other",
            family / "qwen2",
            "--data",
            pictures,
            "--max-steps",
            "1",
            "--limit",
            "4",
            "--out",
            folder / "demo",
            *FAST,
        )
        do("inspect", family / "llama")
        do("inspect", run)
        do("data", "list")
        do("data", "stats", long)
        do("bench", "plan", main=paper)
        do("bench", "plan", "--paper", main=paper)
        do("bench", "search", "--size", "tiny", "--repeats", "1", main=paper)
        do("table1", "--quick", "--dry-run", "--work", folder / "work", main=paper)
    align = sys.modules["craft.cli.align"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align, "show_table", record)
        answers = ["A short one.", f"1. {'猫' * 24}\n2. \x1b[2J", "x" * 70, *["words " * 20] * 9]
        answers = answers[: len(INSTRUCTIONS)]
        language = {"perplexity": 1234.567, "answers": answers}
        align.show_language({"before": language, "after": language})
    return calls


def test_every_table_of_the_program_is_whole_at_every_width(tables, capsys, monkeypatch):
    heads = set(chain.from_iterable(columns for _, columns, *_ in tables))
    assert heads >= {
        "95 % interval",
        "p",
        "gain",
        "overall",
        "trainable",
        "licence",
        "before",
        "MiB",
        "cells left",
    }
    assert len(tables) > 20
    for title, columns, rows, sections, prose in tables:
        for width in (None, *WIDTHS):
            text = printed(capsys, monkeypatch, width, title, columns, rows, sections, prose)
            if set(prose) != set(columns):
                assert read_back(text, title, columns, prose) == as_printed(rows), (width, title)
            words = text.split()
            assert all(word in words for row in rows for cell in row for word in visible(cell).split())
            if width is not None and text.count("┏"):
                assert max(map(cell_len, text.split("\n")[bool(title) :])) <= width


CELLS = st.one_of(
    st.floats(-1e6, 1e6).map(lambda value: f"{value:+.1f} [{value - 1:.1f}, {value + 1:.1f}]"),
    st.floats(1e-300, 1).map(lambda value: f"{value:.0e}"),
    st.integers(-(10**12), 10**12).map(lambda value: f"{value:,} %"),
    st.text(max_size=40),
    st.text(alphabet="猫犬🐈é́👩‍🔬🇬🇧ｱ한ก็ -[]/:\x1b\x9b‮⁦\n\t\\", max_size=30),
    st.sampled_from(
        ["/runs/" + "long-name/" * 30, "[bold]x[/]", "[/]", "[0.3, 0.4]", ":smile:", "[link=x]y"]
    ),
).map(lambda cell: re.sub("[│┃]", "|", unicodedata.normalize("NFC", cell)).strip(" "))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 6).flatmap(
        lambda count: st.lists(st.lists(CELLS, min_size=count, max_size=count), min_size=1, max_size=4)
    ),
    width=st.one_of(st.none(), st.integers(1, 200)),
    title=st.one_of(st.just(""), CELLS),
)
def test_any_table_is_whole(rows, width, title):
    rows = [[f"r{number}", *row] for number, row in enumerate(rows)]
    columns = [f"c{number}" for number in range(len(rows[0]))]
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "_room", lambda: width)
        patch.setattr(output, "write", lines.append)
        show_table(title, columns, rows)
    text = "".join(lines)
    assert read_back(text, title, columns) == as_printed(rows)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_a_narrow_table_is_blocks_and_a_pipe_is_as_wide_as_it_needs(capsys, monkeypatch):
    rows = [["apparel", "200", "41.7", "+0.2 to +12.0", "6e-11"], ["  seen", "100", "100.0", "-", "1.000"]]
    table = ("A = runs/a", ("data", "questions", "A", "95 % interval", "p"), rows)
    assert printed(capsys, monkeypatch, 40, *table).splitlines() == [
        "A = runs/a",
        "data: apparel",
        "  questions: 200",
        "  A: 41.7",
        "  95 % interval: +0.2 to +12.0",
        "  p: 6e-11",
        "data:   seen",
        "  questions: 100",
        "  A: 100.0",
        "  95 % interval: -",
        "  p: 1.000",
    ]
    assert "│   6e-11 │" not in printed(capsys, monkeypatch, None, *table)
    assert "6e-11 │" in printed(capsys, monkeypatch, 60, *table)
    path = "/" + "x" * 300
    assert f"│ {path} │" in printed(capsys, monkeypatch, None, "", ("path",), [[path]])


def test_sentences_are_broken_between_words_and_nothing_else(capsys, monkeypatch):
    rows = [["a", "words of a sentence that goes on and on and on", "12.0 [10.0, 14.0]"]]
    text = printed(capsys, monkeypatch, 50, "", ("n", "says", "mean"), rows, prose=("says",))
    assert "│ 12.0 [10.0, 14.0] │" in text and text.count("│\n") > 1
    assert max(map(len, text.splitlines())) <= 50


def test_pairs_and_lines_show_what_would_control_a_terminal(capsys):
    show_line("a\nb \x1b[2J \x9b \u202e \udcff \u200b 👩‍🔬 é")
    show_text("a\nb\r\x07")
    show_pairs({"na\x1bme": "x\ny", "list": ["one", "two\x1b"], "none": None, "empty": []})
    assert capsys.readouterr().out.splitlines() == [
        "a\\nb \\x1b[2J \\x9b \\u202e \\udcff \\u200b 👩‍🔬 é",
        "a",
        "b\\r\\x07",
        "na\\x1bme  x\\ny",
        "list      one",
        "          two\\x1b",
    ]


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.dictionaries(st.text(), inner, max_size=3)
    )
)
def test_json_stays_exact(value):
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "write", lines.append)
        show_json([value, "\x7f\x9b\u202e\udcff\U000e0041é猫\n"])
    assert json.loads(lines[0])[0] == value
    assert json.loads(lines[0])[1] == "\x7f\x9b\u202e\udcff\U000e0041é猫\n"
    assert not re.search(r"[\x7f-\x9f\u202e\udcff]", lines[0]) and "é猫" in lines[0]
