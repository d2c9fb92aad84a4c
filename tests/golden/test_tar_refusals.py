"""What a Tar LVLM refuses: encoders of other families, and a loss that needs a text encoder."""

from pathlib import Path
from typing import Any

import pytest
import torch

import craft
from craft.core.errors import CodebookMismatchError, ConfigError
from craft.formats.artefact import save_artefact
from craft.models.lvlm import LVLM

GOLDEN = Path(__file__).parent / "tar_small"


def tar() -> LVLM:
    return craft.load(GOLDEN / "Tar-b", device="cpu", dtype="float32")


@pytest.mark.parametrize("foreign", ["craft-tiny/qwen2", "craft-tiny/qwen2-table"])
def test_encoders_of_another_family_are_refused_both_ways(tmp_path: Path, foreign: str) -> None:
    own, other = tar(), craft.load(foreign, device="cpu", dtype="float32")
    for source, target in ((own, other), (other, own)):
        prior = torch.ones(source.visual.codebook.size, dtype=torch.int64)
        folder = save_artefact(tmp_path / source.name, source.visual, prior=prior, manifest={})
        with pytest.raises(CodebookMismatchError) as caught:
            target.with_encoder(folder)
        for lvlm in (own, other):
            assert lvlm.visual.codebook.fingerprint in str(caught.value)


@pytest.mark.parametrize("weight", [1.0, None])
def test_the_contrastive_loss_is_refused_before_anything_is_written(
    tmp_path: Path, weight: float | None
) -> None:
    """None is the paper's weight, which is above 0."""
    settings: dict[str, Any] = {"data.limit": 30, "device": "cpu", "dtype": "float32", "max_steps": 1}
    settings["losses.contrastive.weight"] = weight
    with pytest.raises(ConfigError, match=r"text encoder.*losses\.contrastive\.weight to 0"):
        craft.adapt(str(GOLDEN / "Tar-a"), "apparel", tmp_path / "run", **settings)
    assert not (tmp_path / "run" / "encoder").exists()
