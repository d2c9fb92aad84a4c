"""`python -m paper --quick` with the shipped models: a part of it, as the command line has it."""

import json

import pytest

from cli.conftest import run
from paper.cli import main as paper

pytestmark = pytest.mark.slow


def test_a_part_of_the_quick_run(tmp_path):
    folders = ("--quick", "--domains", "digits", "--work", tmp_path / "work", "--out", tmp_path)
    said = run("table3", "fig7", "fig4", *folders, main=paper)
    assert said.status == 0, said.err
    assert "table3: 2 of 2 trainings" in said.err and "cells remain: the time is unknown" in said.err
    told = json.loads((tmp_path / "table3.json").read_text())
    assert told["provenance"]["plan"]["quick"] and len(told["rows"]) == 6
    assert "Its figures mean nothing" in (tmp_path / "table3.md").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {"fig7-1.png", "fig4-1.png"}
    said = run("table3", "fig7", "fig4", *folders, "--dry-run", "--json", main=paper)
    assert {row["cells left"] for row in said.json} == {"0"}
