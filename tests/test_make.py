"""The Makefile on machines that lack something."""

import shutil
import subprocess

import pytest

from docs.reading import ROOT

BROKEN = """#!/bin/sh
case "$*" in *venv*) mkdir -p "$3/bin"; ln -s /bin/sh "$3/bin/python"; exit 1;; esac
"""
"""A Python without ensurepip, as Debian has it: `-m venv FOLDER` fails and leaves half of FOLDER."""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_half_an_environment_is_not_taken_for_one(tmp_path):
    python, place = tmp_path / "python3", tmp_path / "venv"
    python.write_text(BROKEN)
    python.chmod(0o755)
    command = ["make", f"PYTHON={python}", f"VENV={place}", str(place / "bin/python")]
    for _ in range(2):  # the second time too: nothing half made is found
        assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode != 0
