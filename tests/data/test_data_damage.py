"""Every kind of damage is named: file, line, what is wrong, what to do. `tests/cli/test_damage.py` has the
verbs."""

from pathlib import Path

import pytest

from craft.core.errors import DataError
from craft.data import Wanted, load_data, prepare, verify_images
from data.damage import DAMAGE, states


def test_there_are_many_kinds() -> None:
    assert len(DAMAGE) >= 40


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, tmp_path: Path) -> None:
    make, facts = DAMAGE[name]
    root = tmp_path / "data"
    root.mkdir()
    data = make(root)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as caught:
        verify_images(load_data(data, unseen_fraction=0), progress=False)
    assert states(str(caught.value), facts, root), str(caught.value)
    try:
        prepare(data, None, tmp_path / "out", Wanted(), progress=False)
    except DataError as refused:
        assert str(refused) == str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before
    else:  # what is wrong shows in pixels, or in a question with options, which prepare leaves alone
        assert (tmp_path / "out" / "manifest.json").is_file()
        with pytest.raises(DataError):
            verify_images(load_data(tmp_path / "out", unseen_fraction=0), progress=False)
