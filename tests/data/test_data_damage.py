"""Every kind of damage is named before training: file, line, what is wrong, what to do."""

from pathlib import Path

import pytest

from craft.core.errors import DataError
from craft.data import Wanted, load_data, prepare, verify_images
from data.damage import DAMAGE


def test_there_are_many_kinds() -> None:
    assert len(DAMAGE) >= 40


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, tmp_path: Path) -> None:
    make, message = DAMAGE[name]
    root = tmp_path / "data"
    root.mkdir()
    data = make(root)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as caught:
        verify_images(load_data(data, unseen_fraction=0), progress=False)
        prepare(data, None, tmp_path / "out", Wanted(), progress=False)
    assert str(caught.value) == message.format(root=root)
    assert sorted(tmp_path.rglob("*")) == before
