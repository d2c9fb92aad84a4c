"""Progress goes to standard error: plain lines where there is no terminal, a bar where there is one."""

import re
import sys

import pytest

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


@pytest.mark.parametrize("width", range(25, 201, 7))
def test_a_bar_has_whole_figures_and_lines_at_every_width(capsys, monkeypatch, width):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    name, path = "asking [bold]llama[/] [/] \x1b[2J", "/" + "x" * 300
    for number in track(range(12000), name, 12000):
        if number == 4:
            say(f"{path} 41.7 [30.0, 63.0]\n\x1b[2J")
    err = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "12000/12000" in err and "\x1b" not in err
    assert "asking [bold]llama[/] [/] \\x1b[2J" in err
    assert f"{path} 41.7 [30.0, 63.0]\\n\\x1b[2J" in err


def test_say(capsys, monkeypatch):
    say("hello")
    say("a\nb\x1b[2J")
    assert capsys.readouterr() == ("", "hello\na\\nb\\x1b[2J\n")
    monkeypatch.setattr(sys, "stderr", None)  # closed: not on standard output instead
    say("hello")
    assert list(track([1], "numbers")) == [1]
    assert capsys.readouterr().out == ""
