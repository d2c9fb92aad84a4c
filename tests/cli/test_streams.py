"""Streams as users have them: other encodings, closed, full, with nobody reading, stopped with Ctrl-C."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cli.conftest import FAST, paint

CRAFT = f"{shlex.quote(sys.executable)} -m craft"
NAMES = {"猫": (220, 30, 30), "chêne": (30, 220, 30), "dog": (30, 30, 220)}
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
MISTAKE = "data check nowhere"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Class folders and a table with names that are not ASCII."""
    folder = paint(tmp_path_factory.mktemp("foreign") / "häuser", NAMES)
    for path in list(folder.rglob("*.png")):
        path.rename(path.with_name(f"é{path.name}"))
    rows = [
        {"image": str(path.relative_to(folder.parent)), "question": "Which?", "answer": path.parent.name}
        for path in sorted(folder.rglob("*.png"))
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder.parent / "table.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def shell(command, environment, cwd=None, **more):
    """A command line of bash; its exit status is that of the first command of a pipe."""
    line = f"{command}\nexit ${{PIPESTATUS[0]}}"
    return subprocess.run(
        ["bash", "-c", line], env={**environment, **more}, capture_output=True, cwd=cwd, timeout=120
    )


def slow(value):
    """A case that only the slow run has: each starts Python several times."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.mark.parametrize("encoding", ["cp1252", *map(slow, ("latin-1", "ascii", "gb2312"))])
def test_what_an_encoding_does_not_have_is_an_escape(foreign, environment, encoding):
    said = shell(f"{CRAFT} data check {foreign}", environment, PYTHONIOENCODING=encoding)
    assert said.returncode == 0 and b"Traceback" not in said.stderr, said.stderr
    out = said.stdout.decode(encoding)
    cat = "猫" if encoding == "gb2312" else "\\u732b"
    oak = "ch\\xeane" if encoding == "ascii" else "chêne"
    assert f"{oak}, dog, {cat}" in out
    said = shell(f"{CRAFT} data check {foreign} --json", environment, PYTHONIOENCODING=encoding)
    assert said.returncode == 0
    assert json.loads(said.stdout.decode(encoding))["classes"] == ["chêne", "dog", "猫"]


@pytest.mark.slow
def test_a_c_locale_reads_the_same_names(craft, foreign, environment):
    """Python reads file names as ASCII there; the files are not to blame."""
    for name in ("häuser", "table.jsonl"):
        said = shell(f"{CRAFT} data check {name} --json", environment, foreign.parent, **C_LOCALE)
        assert said.returncode == 0, said.stderr
        assert json.loads(said.stdout) == craft("data", "check", foreign.parent / name, "--json").json
    said = shell(f"{CRAFT} data check nichts-dä", environment, foreign.parent, **C_LOCALE)
    assert said.returncode == 2 and b"nichts-d\\xe4" in said.stderr


@pytest.mark.parametrize("closed", [slow(">&-"), slow("2>&-"), "<&- >&- 2>&-"])
def test_closed_streams(foreign, environment, closed, tmp_path):
    said = shell(f"{CRAFT} data stats {foreign} --out {tmp_path} {closed}", environment)
    assert said.returncode == 0, said.stderr
    assert json.loads((tmp_path / "stats.json").read_text())["images"] == 24  # no file got their numbers
    assert (tmp_path / "stats.png").read_bytes().startswith(b"\x89PNG")
    assert b"done in" not in said.stdout  # progress is not sent to standard output instead
    said = shell(f"{CRAFT} {MISTAKE} {closed}", environment)
    assert said.returncode == 2 and b"Traceback" not in said.stderr + said.stdout
    assert (said.stderr.count(b"craft: ") == 1) == ("2>&-" not in closed)


@pytest.mark.parametrize("words", ["data list", "data list --json", "adapt --help"])
def test_a_reader_that_has_read_enough(environment, words):
    for reader in (":", "head -c 1"):
        said = shell(f"{CRAFT} {words} | {reader}", environment)
        assert (said.returncode, said.stderr) == (0, b"")


@pytest.mark.slow
def test_progress_that_nobody_reads_does_not_end_a_run(family, pictures, environment, tmp_path):
    out = tmp_path / "run"
    words = [
        "adapt",
        str(family / "llama"),
        "--data",
        str(pictures),
        "--out",
        str(out),
        "--max-steps",
        "2",
        *FAST,
    ]
    said = shell(f"{CRAFT} {shlex.join(words)} 2>&1 | head -n 1", environment)
    assert said.returncode == 0 and said.stderr == b""
    assert json.loads((out / "run.json").read_text())["status"] == "finished"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_named(environment):
    for words in ("data list", "--help"):
        said = shell(f"{CRAFT} {words} >/dev/full", environment)
        assert said.returncode == 2 and said.stderr.count(b"\n") == 1
        assert b"No space left on device" in said.stderr
    assert shell(f"{CRAFT} data list 2>/dev/full", environment).returncode == 0


def stopped(words, environment, folder, module):
    """A command that is sent SIGINT while it imports a module, which swallows KeyboardInterrupt."""
    folder.mkdir()
    (folder / f"{module}.py").write_text(
        "import os, time\n"
        "os.write(2, b'importing\\n')\n"
        "try:\n    time.sleep(60)\nexcept BaseException:\n    pass\n"
    )
    environment = {**environment, "PYTHONPATH": os.pathsep.join([str(folder), environment["PYTHONPATH"]])}
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    return err.decode()


def test_ctrl_c_during_imports_is_one_line(environment, tmp_path):
    assert stopped(["craft", "data", "list"], environment, tmp_path / "a", "cyclopts") == "craft: stopped.\n"
    said = stopped(["craft", "adapt", "x", "--data", "y"], environment, tmp_path / "b", "torch")
    assert said.startswith("craft: stopped. The same command with --resume") and said.count("\n") == 1
    said = stopped(
        ["paper", "table1"], environment | {"PYTHONPATH": root(environment)}, tmp_path / "c", "cyclopts"
    )
    assert said == "python -m paper: stopped.\n"


def root(environment):
    """The path with the checkout, for `paper`."""
    return os.pathsep.join(
        [environment["PYTHONPATH"], os.path.dirname(environment["PYTHONPATH"].split(os.pathsep)[0])]
    )


def test_ctrl_c_that_is_ignored_stays_so(environment, tmp_path):
    """As in the background of a script, or under nohup."""
    (tmp_path / "cyclopts.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(7)"
    )
    environment = {**environment, "PYTHONPATH": os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])}
    assert shell(f"trap '' INT; {CRAFT} data list", environment).returncode == 7
    assert shell(f"{CRAFT} data list", environment).returncode == 130


EVIL = "x\x1b]0;owned\x07\x9b31m\u202egnp\u2066 [bold]\n[0.3, 0.4]"


def test_no_name_controls_the_terminal(craft, tmp_path):
    """Classes, files, answers, settings and models with escape sequences in their names."""
    folder = paint(tmp_path / EVIL, {EVIL: (9, 9, 9), "b": (200, 9, 9), "c": (9, 200, 9)}, 4)
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "b" / f"{EVIL}.png")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(
        json.dumps({"status": EVIL, "reason": EVIL, "surrogate": EVIL, "held_out": [EVIL]})
    )
    table = tmp_path / "table.jsonl"
    table.write_text(json.dumps({"image": EVIL, "question": EVIL, "answer": EVIL}) + "\n")
    broken = paint(tmp_path / "broken", {"a": (1, 1, 1), "b": (9, 9, 9)}, 4)
    (broken / "a" / f"{EVIL}.png").write_bytes(b"\x89PNG no")
    good = tmp_path / "good.jsonl"
    rows = [
        {"image": str(path), "question": f"What? {EVIL}", "answer": answer, "options": [EVIL, "b"]}
        for path, answer in zip(
            sorted((tmp_path / "broken" / "b").glob("*.png")), [EVIL, "b"] * 2, strict=True
        )
    ]
    good.write_text("".join(json.dumps(row) + "\n" for row in rows))
    commands = [
        (["data", "check", folder], 0, "x\\x1b]0;owned\\x07\\x9b31m\\u202egnp\\u2066 [bold]"),
        (["data", "stats", folder], 0, "\\x1b]0;owned"),
        (["data", "check", good], 0, "\\x1b]0;owned"),
        (["data", "check", table], 2, "\\x1b]0;owned"),
        (["data", "check", broken], 2, "[0.3, 0.4].png"),
        (["data", "check", EVIL], 2, "\\n[0.3, 0.4]"),
        (["inspect", run], 0, "\\x1b]0;owned\\x07\\x9b31m\\u202egnp\\u2066 [bold]\\n[0.3, 0.4]"),
        (["inspect", EVIL], 2, "\\x1b]0;owned"),
        (["data", "list", "--x\x1b[2J"], 2, "\\x1b"),
        (["adapt", "craft-tiny/llama", "--data", "apparel", "--set", f"{EVIL}=1"], 2, "\\x1b"),
        (["eval", "craft-tiny/llama", "--data", folder, "--limit", "3", "--classes"], 0, "\\x1b]0;owned"),
    ]
    for words, status, shown in commands:
        said = craft(*words)
        text = said.out + said.err
        assert said.status == status, (words, text)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), (words, text)
        assert shown in text and "Traceback" not in text, (words, text)


def test_warnings_and_logs_of_libraries_are_visible_too(capsys):
    code = (
        "import logging, sys, warnings\nfrom craft.core.streams import visible_messages\n"
        "with visible_messages():\n"
        "    warnings.warn('a\\x1b[2J')\n"
        "    logging.warning('%s \\x9b', 'b\\x1b[2J')\n    logging.warning('%d', 'x')\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (
        "a\\x1b[2J" in said.stderr
        and "WARNING:root:b\\x1b[2J \\x9b" in said.stderr
        and "\x1b" not in said.stderr
    )
