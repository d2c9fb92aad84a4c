"""Damaged data: `check` and `adapt` name it in the same words, before any work, and leave nothing behind."""

import pytest

from data.damage import DAMAGE, states


@pytest.mark.parametrize("name", DAMAGE)
def test_the_verbs_refuse_damaged_data(craft, tmp_path, name):
    make, facts = DAMAGE[name]
    root = tmp_path / "data"
    root.mkdir()
    data = make(root)
    before = sorted(tmp_path.rglob("*"))
    for words in (
        ("data", "check", data),
        ("adapt", tmp_path / "no-model", "--data", data, "--out", tmp_path / "run", "--device", "cpu"),
    ):
        complaint = craft(*words).complaint
        assert states(complaint, facts, root), complaint
        assert sorted(tmp_path.rglob("*")) == before
