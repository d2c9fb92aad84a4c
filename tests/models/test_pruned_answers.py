"""Answers from fewer visual tokens: what reaches the projector and the LLM, and what may not matter."""

from dataclasses import replace

import pytest
import torch

from builders import tiny_codebook, tiny_images, tiny_lvlm, tiny_visual
from craft.core.errors import CheckpointError, CodebookMismatchError, CraftError
from craft.core.tensors import save_tensors
from craft.formats.artefact import save_artefact
from craft.formats.load import load
from craft.formats.prior import load_prior, save_prior
from craft.formats.visual_folder import save_visual
from craft.pruning import prune_tokens

ASKED = ["What is shown in the picture?", "Answer in one letter only.", "How many of them?", "bag or coat?"]
COUNTS = (torch.arange(32) - 7) ** 2


@pytest.fixture(params=["llama", "qwen2"])
def lvlm(request):
    """A tiny LVLM with a code prior."""
    return tiny_lvlm(request.param).with_prior(COUNTS)


def test_the_projector_sees_the_kept_tokens_only(lvlm):
    seen = []
    lvlm.backbone.projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = tiny_images(4)
    lvlm.answer(images, ASKED, keep_ratio=0.5)
    pruned = prune_tokens(lvlm.encode(images), COUNTS, 0.5)
    assert [part.shape[1] for part in seen] == [8] and torch.equal(seen[0], pruned.quantized)


def test_pruned_answers_are_those_of_pruned_tokens(lvlm):
    images = tiny_images(4)
    pruned = prune_tokens(lvlm.encode(images), COUNTS, 0.4)
    assert lvlm.answer(images, ASKED, keep_ratio=0.4) == lvlm.answer(pruned, ASKED)
    assert lvlm.answer(images, ASKED, keep_ratio=0.4) != lvlm.answer(images, ASKED)


def test_keep_ratio_1_is_bit_identical_to_no_pruning(lvlm):
    tokens = lvlm.encode(tiny_images(4))
    assert lvlm.visible(tokens, 1.0) is tokens
    logits = [lvlm.backbone.logits(lvlm.backbone.inputs(t, ASKED)) for t in (tokens, lvlm.visible(tokens))]
    assert torch.equal(*logits)


@pytest.mark.parametrize("budget", ["exact", "approx"])
@pytest.mark.parametrize("keep_positions", [False, True])
def test_pruned_answers_do_not_depend_on_batch_mates(lvlm, budget, keep_positions):
    images = tiny_images(4)
    how = {"keep_ratio": 0.5, "budget": budget, "keep_positions": keep_positions, "max_new_tokens": 6}
    together = lvlm.answer(images, ASKED, **how)
    assert together == [lvlm.answer(images[i : i + 1], [ASKED[i]], **how)[0] for i in range(4)]
    assert together == lvlm.answer(images, ASKED, batch_size=3, **how)


def test_rows_of_different_lengths_are_padded_and_masked(lvlm):
    tokens = lvlm.encode(tiny_images(4))
    first = torch.arange(16) % torch.tensor([[2], [5], [9], [4]])  # so many different codes
    codes = torch.stack([first, tokens.codes[..., 1]], dim=2)
    tokens = replace(tokens, codes=codes, quantized=lvlm.visual.codebook.lookup(codes))
    ragged = prune_tokens(tokens, COUNTS, 0.1, budget="approx")  # below the floor: one token per code
    assert ragged.attention_mask.sum(1).tolist() == [2, 5, 9, 4]
    inputs = lvlm.backbone.inputs(ragged, ASKED[:1] * 4)
    text = int(lvlm.backbone.inputs(tokens, ASKED[:1] * 4)["attention_mask"][0].sum()) - 16
    assert (inputs["attention_mask"].sum(1) - text).tolist() == [2, 5, 9, 4]
    alone = [lvlm.answer(ragged[i : i + 1], ASKED[:1], max_new_tokens=6)[0] for i in range(4)]
    assert lvlm.answer(ragged, ASKED[:1] * 4, max_new_tokens=6) == alone


def test_positions_are_packed_or_kept(lvlm):
    pruned = prune_tokens(lvlm.encode(tiny_images(2)), COUNTS, 0.25)
    packed = lvlm.backbone.inputs(pruned, ASKED[:1] * 2)["position_ids"]
    kept = lvlm.backbone.inputs(pruned, ASKED[:1] * 2, keep_positions=True)["position_ids"]
    assert torch.equal(packed[0], torch.arange(packed.shape[1]))
    before = len(packed[0]) - 4 - int((kept[0] >= kept[0, -1] - len(packed[0])).sum())
    start = int(kept[0, 0]) + 1  # BOS stands in front of the image
    assert before <= start and kept[0, start : start + 4].tolist() == (start + pruned.positions[0]).tolist()
    assert int(kept[0, start + 4]) == start + 16  # text goes on where it would have been


def test_a_missing_prior_is_said_before_any_work():
    lvlm = tiny_lvlm()
    lvlm.visual.vision_tower.forward = None  # would fail if it ran
    with pytest.raises(CraftError, match=r"craft prior DATA"):
        lvlm.answer(tiny_images(1), ASKED[:1], keep_ratio=0.8)
    with pytest.raises(CraftError, match=r"\b5\b.*\b32\b"):
        lvlm.with_prior(torch.ones(5, dtype=torch.long)).answer(tiny_images(1), ASKED[:1], keep_ratio=0.8)
    assert len(lvlm.answer(None, ASKED, keep_ratio=0.8)) == 4  # nothing to prune without a picture


def test_with_prior_shares_everything_else(lvlm):
    other = lvlm.with_prior(None)
    assert other.visual.prior is None and torch.equal(lvlm.visual.prior, COUNTS)
    assert other.visual.vision_tower is lvlm.visual.vision_tower and other.backbone is lvlm.backbone


def test_prior_files(tmp_path):
    book = tiny_codebook()
    path = save_prior(tmp_path / "prior.safetensors", COUNTS, book, {"data": "blobs"})
    assert torch.equal(load_prior(path, book), COUNTS) and torch.equal(load_prior(tmp_path, book), COUNTS)
    with pytest.raises(CodebookMismatchError, match=book.fingerprint):
        load_prior(path, tiny_codebook(seed=1))
    with pytest.raises(CheckpointError, match=r"shape \[32\] instead of \[16\]"):
        load_prior(path, tiny_codebook(size=16))
    with pytest.raises(CheckpointError, match=r"\b16\b"):
        save_prior(path, COUNTS, tiny_codebook(size=16))
    with pytest.raises(CheckpointError, match="holds no code prior"):
        (tmp_path / "run" / "encoder").mkdir(parents=True)
        load_prior(tmp_path / "run", book)
    save_tensors(tmp_path / "other.safetensors", {"counts": COUNTS})  # says nothing of its codebook
    assert torch.equal(load_prior(tmp_path / "other.safetensors", book), COUNTS)


def test_a_prior_in_the_folder_of_another_codebook_is_refused(tmp_path):
    """Its file does not say which codebook it is of: what lies beside it does."""
    visual, other = tiny_visual(), tiny_codebook(seed=1)  # of one size
    visual.prior = COUNTS
    save_visual(tmp_path / "visual", visual)
    run = save_artefact(tmp_path / "run" / "encoder", visual, prior=COUNTS, manifest={}).parent
    for place in (run, run / "encoder", run / "encoder" / "prior.safetensors", tmp_path / "visual"):
        assert torch.equal(load_prior(place, visual.codebook), COUNTS)
        with pytest.raises(CodebookMismatchError, match=visual.codebook.fingerprint):
            load_prior(place, other)


def test_craft_tiny_ships_the_prior_of_general_pictures():
    visual = load("craft-tiny/llama").visual
    assert visual.prior is not None and visual.prior.shape == (visual.codebook.size,)
    assert int(visual.prior.sum()) % (visual.grid[0] * visual.grid[1]) == 0  # whole pictures
    assert int(visual.prior.sum()) > 10_000 * 49
