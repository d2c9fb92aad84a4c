"""`craft.adapt` on Chameleon: through the table, resumed bit for bit, for the other LLM of the codebook."""

import json

import pytest
import torch

from chameleons import save_chameleon
from craft.core.errors import DataError
from craft.formats.load import load_artefact
from craft.lessons.batches import ImageBatches
from craft.recipes import adapt, evaluate
from tiny_data import tiny_data

FAST = {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-4, "device": "cpu", "checkpoint_every": 1}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A small and a large LLM of one codebook, as folders."""
    folder = tmp_path_factory.mktemp("family")
    for size in ("small", "large"):
        save_chameleon(folder / size, size)
    return folder


@pytest.mark.parametrize("rule", ["affine", "soft"])
def test_adapts_resumes_and_moves_to_the_other_llm(family, tmp_path, monkeypatch, rule):
    settings = {**FAST, "losses.table_gradient": rule}
    whole = adapt(family / "small", tiny_data(), tmp_path / "whole", **settings)
    run = json.loads((whole.out / "run.json").read_text())
    assert run["table"]["rule"] == rule
    before, after = run["hashes_before"], run["hashes_after"]
    assert {part for part in before if before[part] != after[part]} == {"vision_tower"}

    make = ImageBatches.make

    def gone(self, indices, step):
        if step == 2:
            raise DataError("the picture has gone")
        return make(self, indices, step)

    monkeypatch.setattr(ImageBatches, "make", gone)
    with pytest.raises(DataError):
        adapt(family / "small", tiny_data(), tmp_path / "broken", **settings)
    monkeypatch.setattr(ImageBatches, "make", make)
    broken = adapt(family / "small", tiny_data(), tmp_path / "broken", resume=True, **settings)
    one, two = (load_artefact(result.out) for result in (whole, broken))
    assert all(torch.equal(value, two.state[name]) for name, value in one.state.items())
    assert torch.equal(one.prior, two.prior)

    again = adapt(family / "small", tiny_data(), tmp_path / "again", gradient_checkpointing=True, **settings)
    rerun = load_artefact(again.out)
    assert all(torch.equal(value, rerun.state[name]) for name, value in one.state.items())

    report = evaluate(str(family / "large"), str(whole.out), tiny_data(), device="cpu", keep_ratio=0.5)
    assert 0 <= report.accuracy <= 1
