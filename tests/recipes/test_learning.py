"""What CRAFT learns with its defaults, and what that is worth to an LLM it never trained with."""

import json
import subprocess
import sys

import pytest

LEAST = {"surrogate": 0.74, "other": 0.62}
"""Accuracy on apparel's 500 questions: a little below what the defaults reach, far above the base tower's."""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # 75 s on two idle cores
def test_the_demo_learns_what_it_did(tmp_path):
    """In a process of its own, as a user runs it: run-time type checks would slow every step down."""
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "craft", "demo", "--out", str(out), "--device", "cpu"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    assert result["metrics"]["steps"] == 200 and result["data"] == "apparel"
    assert {row["role"]: row["backbone"] for row in result["rows"]} == {
        "surrogate": "craft-tiny/qwen2",
        "other": "craft-tiny/llama",
    }
    adapted = {row["role"]: row["figures"]["all"] for row in result["rows"] if row["encoder"] == "adapted"}
    assert {figures["count"] for figures in adapted.values()} == {500}
    assert [role for role, least in LEAST.items() if adapted[role]["accuracy"] < least] == [], adapted
    assert result["frozen"].keys() == {"craft-tiny/qwen2", "craft-tiny/llama"}
    assert {same for parts in result["frozen"].values() for same in parts.values()} == {True}
    assert set(result["text_unchanged"].values()) == {True}
