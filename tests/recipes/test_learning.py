"""What CRAFT learns with its defaults, and what that is worth to an LLM it never trained with."""

import pytest

from craft.recipes.demo import FROZEN, demo

LEAST = {"surrogate": 0.74, "other": 0.62}
"""Accuracy on apparel's 500 questions: a little below what the defaults reach, far above the base tower's."""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # 75 s on two idle cores
def test_the_demo_learns_what_it_did(tmp_path):
    result = demo(out=tmp_path / "demo", data="apparel", seed=0, device="cpu")
    assert result.metrics["steps"] == 200
    assert {row.role: row.backbone for row in result.rows} == {
        "surrogate": "craft-tiny/qwen2",
        "other": "craft-tiny/llama",
    }
    adapted = {row.role: row.figures["all"] for row in result.rows if row.encoder == "adapted"}
    assert {figure.count for figure in adapted.values()} == {500}
    assert [role for role, least in LEAST.items() if adapted[role].accuracy < least] == [], adapted
    parts = dict.fromkeys(FROZEN, True)
    assert result.frozen == {"craft-tiny/qwen2": parts, "craft-tiny/llama": parts}
    assert set(result.text_unchanged.values()) == {True}
