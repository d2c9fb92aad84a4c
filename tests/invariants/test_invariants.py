"""What must hold whatever happens (DESIGN, "Invariants worth a test each")."""

import pytest
import torch

from builders import tiny_codebook, tiny_images, tiny_lvlm
from craft.core.tensors import hash_tensors
from craft.formats.artefact import save_artefact
from craft.formats.load import load_artefact
from craft.models.freezing import part_hashes
from craft.pruning import prune_tokens
from craft.quantize import straight_through
from craft.recipes import adapt
from tiny_data import tiny_data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short adaptation under `.train()`, with what was before it."""
    lvlm = tiny_lvlm().train()
    before = part_hashes(lvlm)
    out = tmp_path_factory.mktemp("runs") / "run"
    result = adapt(lvlm, tiny_data(), out, max_steps=2, batch_size=4, device="cpu", learning_rate=1e-3)
    return lvlm, before, result


def test_codebook_projector_and_llm_keep_their_bytes(run):
    lvlm, before, result = run
    after = part_hashes(result.lvlm)
    assert {part for part in before if before[part] != after[part]} == {"vision_tower"}
    assert part_hashes(lvlm) == before


def test_text_only_answers_do_not_depend_on_the_encoder(run):
    _, _, result = run
    questions = ["What is shown?", "Name the animal: cat, dog."]
    for kind in ("llama", "qwen2"):
        lvlm = tiny_lvlm(kind)
        adapted = lvlm.with_encoder(result.out)
        inputs = [model.backbone.inputs(None, questions) for model in (lvlm, adapted)]
        with torch.no_grad():
            logits = [m.backbone.logits(i) for m, i in zip((lvlm, adapted), inputs, strict=True)]
        assert torch.equal(*logits)
        assert lvlm.answer(None, questions) == adapted.answer(None, questions)


@pytest.mark.parametrize("tower", ["hybrid", "siglip"])
def test_codes_do_not_depend_on_batch_mates(tower):
    lvlm, images = tiny_lvlm(tower=tower), tiny_images(5)
    together = lvlm.encode(images).codes
    alone = torch.cat([lvlm.encode(images[i : i + 1]).codes for i in range(5)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_straight_through_is_exactly_the_codeword_sum(dtype):
    book = tiny_codebook()
    z = torch.randn(40, book.dim).to(dtype).requires_grad_()
    exact = book.quantize(z).quantized
    out = straight_through(z, exact)
    assert torch.equal(out, exact) and torch.equal(out, book.lookup(book.quantize(z).codes))
    out.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


@pytest.mark.parametrize("tower", ["hybrid", "siglip"])
def test_cls_changes_no_patch_code(tower):
    lvlm, images = tiny_lvlm(tower=tower), tiny_images(4)
    before = lvlm.encode(images)
    with torch.no_grad():
        lvlm.visual.vision_tower.cls_token.normal_(std=3)
    after = lvlm.encode(images)
    assert torch.equal(before.codes, after.codes) and torch.equal(before.features, after.features)
    assert not torch.equal(before.cls, after.cls)


def test_keep_ratio_1_is_no_pruning():
    lvlm, images = tiny_lvlm().with_prior(torch.arange(32)), tiny_images(3)
    asked = ["What is shown in the picture?"] * 3
    assert lvlm.answer(images, asked, keep_ratio=1.0) == lvlm.answer(images, asked)
    tokens = lvlm.encode(images)
    assert prune_tokens(tokens, lvlm.visual.prior, 1.0) is tokens


def test_pruning_is_nested_and_independent_of_batch_mates():
    lvlm, prior = tiny_lvlm(), torch.arange(32)
    tokens, kept = lvlm.encode(tiny_images(5)), None
    for ratio in (1.0, 0.8, 0.5, 0.2):
        pruned = prune_tokens(tokens, prior, ratio).positions
        alone = [prune_tokens(tokens[i : i + 1], prior, ratio).positions for i in range(5)]
        assert torch.equal(pruned, torch.cat(alone))
        rows = [set(row.tolist()) for row in pruned]
        assert kept is None or all(few < many for few, many in zip(rows, kept, strict=True))
        kept = rows


def test_saved_loaded_saved_is_byte_identical(run, tmp_path):
    _, _, result = run
    artefact = load_artefact(result.out)
    visual = tiny_lvlm().with_encoder(artefact).visual
    save_artefact(
        tmp_path / "encoder",
        visual,
        prior=artefact.prior,
        manifest=artefact.manifest,
        base_counts=artefact.base_counts,
    )
    for name in ("model.safetensors", "prior.safetensors", "craft.json"):
        assert (tmp_path / "encoder" / name).read_bytes() == (result.encoder / name).read_bytes()
    assert hash_tensors(visual.vision_tower.state_dict()) == artefact.manifest["tower"]
