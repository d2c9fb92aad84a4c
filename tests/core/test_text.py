"""Values as text."""

import pytest

from craft.core.text import flat, json_digest, percent, signed, slug, table_row

PLAIN = "a4c4beb6129c7cd367f821305c97e5831617f8bda9af46aace572c8202c5f241"
COMPACT = "d893384e1d283e4c1122f92d20a799078b9bc7d85165087c824cc107a213aaf1"


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
