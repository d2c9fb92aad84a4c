"""Progress goes to standard error: plain lines where there is no terminal, a bar where there is one."""

import sys

from craft.core import progress
from craft.core.progress import say, track


def test_plain_lines_at_tenths(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    assert list(track(range(50), "steps")) == list(range(50))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 10
    assert lines[0].startswith("steps: 5/50")
    assert lines[-1].startswith("steps: 50 done in")


def test_a_short_job_has_one_line(capsys):
    assert len(list(track(range(50), "steps"))) == 50
    assert capsys.readouterr().err.splitlines() == ["steps: 50 done in 0 s"]


def test_unknown_length_and_nothing(capsys):
    assert list(track(iter("abc"), "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("letters: 3 done")
    assert list(track([], "none")) == []
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(track([1, 2], "bar")) == [1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert "bar" in err


def test_say(capsys):
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")
