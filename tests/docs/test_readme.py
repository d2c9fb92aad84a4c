"""README.md: short, and its parts are there; its marks for measured parts are in pairs."""

import re

from docs.reading import ROOT, python_blocks

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 170


def test_its_parts_are_there_in_order():
    wanted = ["Status", "Try it", "Install", "Adapt and evaluate", "From Python", "Results", "How it works",
              "Commands", "Limits", "Citation", "Licence"]  # fmt: skip
    titles = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    assert [title for title in titles if title in wanted] == wanted
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


def test_equation_2_is_three_steps_away():
    """A stranger finds Eq. 2's line: README names the file, and the file names the equation."""
    assert "losses/sal.py" in TEXT
    files = [path for path in (ROOT / "src/craft/losses").glob("*.py") if path.stem in ("sal", "alignment")]
    (path,) = files
    assert "Eq. 2" in path.read_text(encoding="utf-8")
