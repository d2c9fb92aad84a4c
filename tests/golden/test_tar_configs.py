"""configs/tar: every file is run, on the small checkpoint of golden/tar_small."""

from pathlib import Path

import pytest

import craft
from craft.recipes.adapt import rehearse
from craft.training.config import AdaptConfig

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "tar").glob("*.yaml"))
GOLDEN = Path(__file__).parent / "tar_small"


def test_there_is_a_file_for_each_published_llm() -> None:
    assert [path.stem for path in FILES] == ["adapt-tar-1.5b", "adapt-tar-7b"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_settings_are_the_papers_and_run(path: Path, tmp_path: Path) -> None:
    config = AdaptConfig.build(path)
    assert (config.batch_size, config.trainable, config.blend, config.augment) == (24, "all", 1.0, 0.0)
    assert config.losses.commitment.weight == 0.1 and config.losses.table_gradient == "affine"
    small = {"data.root": None, "data.limit": 30, "dtype": "float32", "device": "cpu", "workers": 0}
    step = rehearse(str(GOLDEN / "Tar-a"), "apparel", max_steps=1, config=path, **small)
    assert step is not None
    result = craft.adapt(
        str(GOLDEN / "Tar-a"), "apparel", tmp_path, max_steps=1, config=path, **small, batch_size=4
    )
    assert (result.encoder / "model.safetensors").is_file()
