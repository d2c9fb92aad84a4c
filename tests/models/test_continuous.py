"""Continuous LVLMs: features reach the LLM as they are, and what needs codes says so."""

import json
import shutil

import pytest
import torch

from builders import tiny_backbone, tiny_continuous, tiny_images, tiny_lvlm, tiny_visual
from craft.core.errors import CheckpointError, CodebookMismatchError, CraftError
from craft.core.tensors import load_tensors
from craft.data.chats import Conversation
from craft.evaluation.run import evaluate_lvlm
from craft.formats.code_cache import CodeCache
from craft.formats.native import load_native, load_visual, save_native, save_visual
from craft.models.freezing import part_hashes
from craft.models.lvlm import LVLM
from craft.pruning import prune_tokens
from craft.quantize import tower_fingerprint
from craft.recipes import build_prior
from craft.recipes.align import align
from craft.recipes.show import show
from tiny_data import tiny_data

QUESTIONS = ["What is shown in the picture?", "How many?"]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A discrete backbone and its continuous twin behind one visual tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_native(folder, "llama", tiny_lvlm())
    save_native(folder, "continuous", load_twin(folder))
    return folder


def load_twin(folder):
    visual = load_visual(folder / "visual").unquantised()
    backbone = tiny_backbone()
    backbone.codebook_fingerprint = visual.codebook.fingerprint
    return LVLM(visual, backbone, "twin")


def test_features_are_what_the_llm_reads():
    lvlm, images = tiny_continuous(), tiny_images(3)
    tokens = lvlm.encode(images)
    with torch.no_grad():
        features, cls = lvlm.visual.vision_tower(images)
    assert torch.equal(tokens.quantized, features) and torch.equal(tokens.features, features)
    assert torch.equal(tokens.cls, cls)
    assert tokens.codes.shape == (3, 16, 0) and tokens.codes.dtype == torch.int64
    assert torch.equal(tokens.residual, torch.zeros(3, 16))
    assert torch.equal(tokens.features, tiny_lvlm().encode(images).features)  # the same tower


def test_gradient_reaches_the_tower_unchanged():
    lvlm = tiny_continuous()
    pixels = tiny_images(1)
    tokens = lvlm.visual(pixels)
    weight = next(lvlm.visual.vision_tower.layers.parameters())
    (found,) = torch.autograd.grad(tokens.quantized.square().sum(), [weight])
    (expected,) = torch.autograd.grad(lvlm.visual.vision_tower(pixels)[0].square().sum(), [weight])
    torch.testing.assert_close(found, expected)


def test_the_family_shares_one_tower(family, tmp_path):
    assert not (family / "continuous" / "visual").exists()
    manifest = json.loads((family / "continuous" / "craft.json").read_text())
    assert manifest["visual"] == "../visual" and manifest["codebook"].startswith("tower:")
    twin, discrete = load_native(family / "continuous", "cpu"), load_native(family / "llama", "cpu")
    assert twin.visual.continuous and not discrete.visual.continuous
    assert part_hashes(twin)["vision_tower"] == part_hashes(discrete)["vision_tower"]
    again = save_native(shutil.copytree(family, tmp_path / "copy"), "continuous", twin)
    for file in (family / "continuous").rglob("*.*"):
        assert (again / file.relative_to(family / "continuous")).read_bytes() == file.read_bytes()


def test_fingerprint_is_that_of_the_tower_in_any_precision(family):
    one, two = (load_native(family / "continuous", "cpu", dtype) for dtype in ("float32", "bfloat16"))
    assert one.visual.codebook.fingerprint == two.visual.codebook.fingerprint
    state = one.visual.vision_tower.state_dict()
    assert one.visual.codebook.fingerprint == tower_fingerprint(state)
    state["cls_token"] = state["cls_token"] + 1
    assert one.visual.codebook.fingerprint != tower_fingerprint(state)


def test_a_family_without_any_codebook(tmp_path):
    save_native(tmp_path / "plain", "llama", tiny_continuous(), dtype="float32")
    assert "codebook.codewords" not in load_tensors(tmp_path / "plain" / "visual" / "model.safetensors")
    assert json.loads((tmp_path / "plain" / "visual" / "config.json").read_text())["levels"] == 0
    again, images = load_native(tmp_path / "plain" / "llama", "cpu"), tiny_images(2)
    assert torch.equal(again.encode(images).quantized, tiny_continuous().encode(images).quantized)
    assert again.answer(images, QUESTIONS) == tiny_continuous().answer(images, QUESTIONS)


def test_parts_of_other_models_are_refused(family, tmp_path):
    with pytest.raises(CodebookMismatchError, match=r"tower:.* continuous LVLM reads"):
        LVLM(tiny_visual(), tiny_continuous().backbone, "mixed")
    other = shutil.copytree(family, tmp_path / "other")
    shutil.rmtree(other / "visual")
    save_visual(other / "visual", tiny_visual(seed=1))
    with pytest.raises(CodebookMismatchError, match="put it back"):
        load_native(other / "continuous", "cpu")
    with pytest.raises(CheckpointError, match="another vision tower"):
        save_native(family, "more", tiny_continuous(seed=1))


def test_what_needs_codes_says_so(tmp_path):
    lvlm, data = tiny_continuous(), tiny_data()
    images = [data.train[0].image]
    with pytest.raises(CraftError, match=r"keep_ratio=0\.5.* codes"):
        lvlm.answer(images, QUESTIONS[:1], keep_ratio=0.5)
    with pytest.raises(CraftError, match="codes"):
        build_prior("apparel", lvlm)
    with pytest.raises(CraftError, match="codes"):
        show(images, lvlm, out=tmp_path / "shown")
    with pytest.raises(CraftError, match="codes"):
        align("smollm2", lvlm.visual, [Conversation("one", (("Who?", "I."),))], out=tmp_path / "aligned")
    with pytest.raises(CraftError, match="codes"):
        prune_tokens(lvlm.encode(images), None, 0.5)
    with pytest.raises(CraftError, match="codebook"):
        lvlm.visual.codebook.lookup(torch.zeros(1, 0, dtype=torch.long))
    assert lvlm.answer(images, QUESTIONS[:1], keep_ratio=1.0) == lvlm.answer(images, QUESTIONS[:1])


def test_features_are_cached_as_codes_are(tmp_path):
    lvlm, images = tiny_continuous(), [sample.image for sample in tiny_data().test]
    first = CodeCache(tmp_path).encode(lvlm.visual, images)
    lvlm.visual.vision_tower.forward = None  # not called again
    again = CodeCache(tmp_path).encode(lvlm.visual, images)
    tokens = again.tokens([1, 0])
    assert torch.equal(first.tokens([1, 0]).quantized, tokens.quantized)
    expected = tiny_continuous().encode(images)
    assert torch.equal(tokens.quantized, expected.quantized[[1, 0]])
    assert tokens.codes.shape == (2, 16, 0)


def test_evaluated_as_it_answers():
    lvlm, samples = tiny_continuous(), tiny_data().test
    report = evaluate_lvlm(lvlm, samples, progress=False)
    answers = lvlm.answer([s.image for s in samples], [s.prompt() for s in samples])
    assert [row["prediction"] for row in report.samples] == answers
