"""Values as text."""

import json

import pytest

from craft.core.text import (
    flat,
    json_digest,
    one_line,
    percent,
    signed,
    slug,
    table_row,
    visible,
    visible_json,
)

PLAIN = "a4c4beb6129c7cd367f821305c97e5831617f8bda9af46aace572c8202c5f241"
COMPACT = "d893384e1d283e4c1122f92d20a799078b9bc7d85165087c824cc107a213aaf1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07 \x1b]8;;http://x\x1b\\", "\\x1b]0;title\\x07 \\x1b]8;;http://x\\x1b\\"),
        ("\x9b31m \x90 \x85 \x7f", "\\x9b31m \\x90 \\x85 \\x7f"),
        ("a\nb\r\tc\b\0", "a\\nb\\r\\tc\\x08\\x00"),
        ("\u202egnp.exe \u2066 \u2069 \u200f", "\\u202egnp.exe \\u2066 \\u2069 \\u200f"),
        ("\u2028 \u2029 \ufeff \u200b \udcff", "\\u2028 \\u2029 \\ufeff \\u200b \\udcff"),
        ("\U000e0041", "\\U000e0041"),
        ("猫 é e\u0301 👩‍🔬 می‌خواهم 🇬🇧 − ± →", "猫 é e\u0301 👩‍🔬 می‌خواهم 🇬🇧 − ± →"),
        ("[bold]x[/] C:\\new", "[bold]x[/] C:\\new"),
    ],
)
def test_text_for_a_terminal(text, shown):
    assert visible(text) == shown


def test_lines_of_a_text_and_strings_of_json_stay():
    assert visible("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    text = visible_json(json.dumps({"a\x7f": "\x9b\u202e\n\U000e0041猫"}, ensure_ascii=False, indent=2))
    assert json.loads(text) == {"a\x7f": "\x9b\u202e\n\U000e0041猫"}
    assert text == '{\n  "a\\u007f": "\\u009b\\u202e\\n\\udb40\\udc41猫"\n}'


def test_one_line_shows_where_it_is_cut():
    assert one_line(ValueError("a\n  b")) == "a b" == one_line("a b", 3)
    assert one_line("a\nbcd", 4) == "a  …"


@pytest.mark.parametrize(("value", "text"), [(0.684, "68.4"), (0.0, "0.0"), (None, "-"), (float("nan"), "-")])
def test_percent(value, text):
    assert percent(value) == text


def test_signed():
    assert [signed(value) for value in (0.25, -0.0316, None)] == ["+25.0", "-3.2", "-"]


def test_a_bar_in_a_cell_is_escaped_once():
    assert table_row(["a|b", r"c\|d"]) == r"| a\|b | c\|d |"


def test_slug():
    assert slug("claude-opus 4/5: «new»", "judge") == "claude-opus-4-5-new"
    assert slug("../..", "judge") == "judge"


def test_flat():
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": []}) == {"a.b": 1, "a.c.d": 2, "e": []}


def test_digests_stay_what_kept_results_were_named_by():
    value = {"b": ["é", 1.5, None], "a": {"z": 1, "y": "x"}}
    reordered = {"a": {"y": "x", "z": 1}, "b": ["é", 1.5, None]}
    assert json_digest(value) == json_digest(reordered) == PLAIN
    assert json_digest(value, compact=True) == json_digest(reordered, compact=True) == COMPACT
