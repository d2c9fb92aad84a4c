"""Code priors through the recipes: counted, chosen, used."""

import pytest
import torch

from builders import tiny_lvlm
from cli.conftest import COLOURS, paint
from craft.core.errors import CodebookMismatchError, ConfigError, CraftError
from craft.core.tensors import load_tensors
from craft.recipes import adapt, build_prior, evaluate
from craft.recipes.prior import chosen_prior
from tiny_data import tiny_data

FAST = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "device": "cpu"}
COUNTS = (torch.arange(32) * 5) % 17


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A run on class folders, and the folders."""
    base = tmp_path_factory.mktemp("prior")
    folder = paint(base / "pictures", COLOURS)
    return adapt(tiny_lvlm(), folder, base / "run", **FAST), folder


def test_an_encoders_prior_is_rebuilt(adapted, tmp_path):
    result, folder = adapted
    out = tmp_path / "prior.safetensors"
    rebuilt = build_prior(folder, tiny_lvlm(), result.out)
    assert rebuilt.save(out) == out and torch.equal(rebuilt.counts, result.prior)
    assert torch.equal(load_tensors(out)["counts"], result.prior)
    assert rebuilt.images * 16 == int(rebuilt.counts.sum())
    assert 0 < rebuilt.used <= 1 < rebuilt.perplexity <= 32
    base = build_prior(folder, tiny_lvlm(), limit=3)
    assert base.images == 3 and not torch.equal(base.counts, rebuilt.counts)


def test_evaluate_prunes_by_the_prior_that_is_asked_for(adapted, tmp_path):
    result, folder = adapted
    lvlm = tiny_lvlm().with_prior(COUNTS)
    file = build_prior(folder, tiny_lvlm()).save(tmp_path / "p.safetensors")
    asked = {"encoder": result.out, "keep_ratio": 0.5}
    reports = {name: evaluate(lvlm, **asked, prior=name) for name in (None, "general", str(file))}
    assert all(report.settings["prior"] == name for name, report in reports.items())
    priors = {None: result.prior, "general": COUNTS, str(file): load_tensors(file)["counts"]}
    for name, report in reports.items():
        live = lvlm.with_encoder(result.out).with_prior(priors[name])
        images = [str(folder / row["id"]) for row in report.samples]
        answers = live.answer(images, [row["prompt"] for row in report.samples], keep_ratio=0.5)
        assert answers == [row["prediction"] for row in report.samples]
        assert report.settings["keep_ratio"] == 0.5


def test_keep_positions_reaches_the_llm(adapted):
    result, _ = adapted
    lvlm = tiny_lvlm().with_prior(COUNTS)
    packed, kept = (evaluate(lvlm, result.out, keep_ratio=0.4, keep_positions=k) for k in (False, True))
    assert kept.settings["keep_positions"] and not packed.settings["keep_positions"]
    assert [r["prediction"] for r in packed.samples] != [r["prediction"] for r in kept.samples]


def test_what_cannot_be_pruned_is_refused(adapted, tmp_path):
    result, folder = adapted
    with pytest.raises(CraftError, match="came without a code prior"):
        evaluate(tiny_lvlm(), None, tiny_data(), keep_ratio=0.5)
    with pytest.raises(ConfigError, match=r"without a general code prior.*craft prior DATA"):
        evaluate(tiny_lvlm(), result.out, keep_ratio=0.5, prior="general")
    other = build_prior(folder, tiny_lvlm(codebook_seed=1)).save(tmp_path / "o.safetensors")
    with pytest.raises(CodebookMismatchError):
        chosen_prior(other, tiny_lvlm())
