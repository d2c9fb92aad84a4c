"""README.md: short, and its parts are there; its marks for measured parts are in pairs."""

import re

from docs.reading import ROOT, python_blocks, script

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PARTS = [
    "Status",
    "Try it",
    "Install",
    "Adapt and evaluate",
    "Use it",
    "From Python",
    "Results",
    "How it works",
    "Commands",
    "Limits",
    "Citation and licence",
]


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 170


def test_its_parts_are_there_in_order():
    assert re.findall(r"^## (.+)$", TEXT, re.MULTILINE) == PARTS
    assert "make demo" in TEXT


def test_marks_for_measured_parts_are_in_pairs():
    begun = re.findall(r"<!-- ([\w:-]+):begin -->", TEXT)
    ended = re.findall(r"<!-- ([\w:-]+):end -->", TEXT)
    assert begun == ended
    assert {"numbers:results", "output:demo", "output:adapt", "output:eval"} <= set(begun)


def test_its_python_is_twelve_lines():
    ((code, reason),) = python_blocks(TEXT)
    assert not reason
    assert len([line for line in code.splitlines() if line.strip()]) == 12


def test_the_figure_is_what_its_script_draws():
    assert "docs/figure.svg" in TEXT
    drawn = script("draw_figure").drawing()
    assert (ROOT / "docs/figure.svg").read_text(encoding="utf-8") == drawn


def test_equation_2_is_three_steps_away():
    """README names the file, the file names the equation at the function, and the function is its line."""
    assert "losses/sal.py" in TEXT
    text = (ROOT / "src/craft/losses/sal.py").read_text(encoding="utf-8")
    function = text.partition("def surrogate_alignment(")[2].partition("\ndef ")[0]
    assert "Eq. 2" in function
