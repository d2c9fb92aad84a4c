"""Stage 1 and 2 on a tiny model: what moves, what a packed row is worth, LoRA in and out."""

from functools import partial

import pytest
import torch

from builders import tiny_images, tiny_lvlm
from craft.core.errors import ConfigError, TrainingError
from craft.data.chats import Conversation
from craft.formats.code_cache import CodeCache
from craft.lessons.align import AlignObjective, RowBatches, alignment
from craft.lessons.packing import answers_within, make_rows, whole_within
from craft.losses.sal import BLOCK, surrogate_alignment
from craft.models.decoding import generate
from craft.models.freezing import part_hashes
from craft.models.prompts import build_dialogue
from craft.training.config import AlignConfig, LoraConfig
from craft.training.fit import fit
from craft.training.lora import add_lora, lora_targets, take_lora
from craft.training.run_folder import RunFolder

WORDS = ("red bag", "blue coat", "green shoe", "grey dress")
FAST = {"llm": "tiny", "max_steps": 2, "batch_size": 4, "device": "cpu", "learning_rate": 1e-2}


def talk(number: int, text: bool = False) -> Conversation:
    word = WORDS[number % 4]
    turns = ((f"Number {number}: what is it?", word), ("Sure?", "Yes"))[: 1 + number % 2]
    return Conversation(f"c{number}", turns, None if text else number % 4)


@pytest.fixture(scope="module")
def codes():
    pixels = [((image.permute(1, 2, 0) + 1) * 127).byte().numpy() for image in tiny_images(4)]
    return CodeCache().encode(tiny_lvlm().visual, pixels)


def rows_of(count=8, per_row=1, text=False):
    talks = [talk(n, text) for n in range(count)]
    return make_rows(talks, [c.image for c in talks], per_row)


def loss_of(lvlm, rows, codes, indices=None, **settings):
    config = AlignConfig.build(None, {**FAST, **settings})
    batches = RowBatches(lvlm.backbone, rows, config, codes)
    batch = batches.make(list(range(len(rows))) if indices is None else indices, 0)
    return AlignObjective(lvlm)(batch)[0], batches, batch


def train(tmp_path, codes, stage, rows=None, **settings):
    lvlm = tiny_lvlm()
    config = AlignConfig.build(None, {**FAST, **settings})
    run = RunFolder(tmp_path / "run")
    run.open(config)
    lesson = partial(alignment, stage=stage, codes=codes)
    before = part_hashes(lvlm)
    fit(lvlm, rows or rows_of(), config, run, make_lesson=lesson)
    return lvlm, run, before


@pytest.mark.parametrize("stage, moved", [(1, {"projector"}), (2, {"projector", "llm"})])
def test_what_moves(tmp_path, codes, stage, moved):
    lvlm, run, before = train(tmp_path, codes, stage)
    after = part_hashes(lvlm)
    assert {part for part in before if before[part] != after[part]} == moved
    assert run.record["hashes_after"] == after


def test_overfits_eight_rows(tmp_path, codes):
    settings = {"max_steps": 40, "batch_size": 8, "learning_rate": 3e-2}
    lvlm, run, _ = train(tmp_path, codes, 2, **settings)
    lines = run.metrics()
    assert lines[-1]["loss"] < 0.2 * lines[0]["loss"]
    said = generate(lvlm.backbone, codes.tokens([0, 1]), [talk(n).turns[0][0] for n in (4, 5)], 12)
    assert said == ["red bag", "blue coat"]


def test_packed_rows_have_the_loss_of_single_ones(codes):
    lvlm = tiny_lvlm()
    single, batches, batch = loss_of(lvlm, rows_of(), codes)
    packed_rows = rows_of(per_row=2)
    packed, packed_batches, packed_batch = loss_of(lvlm, packed_rows, codes)
    assert [len(row.conversations) for row in packed_rows] == [2, 2, 2, 2]
    assert batches.answer_tokens(batch) == packed_batches.answer_tokens(packed_batch)
    torch.testing.assert_close(single, packed)
    text = rows_of(5, per_row=3, text=True)
    assert [len(row.conversations) for row in text] == [3, 2]
    torch.testing.assert_close(loss_of(lvlm, text, None)[0], loss_of(lvlm, rows_of(5, text=True), None)[0])


def test_rows_without_image_and_in_one_batch_with_images(codes):
    lvlm = tiny_lvlm()
    lvlm.requires_grad_(False)
    lvlm.backbone.projector.requires_grad_(True)
    loss, _, batch = loss_of(lvlm, rows_of(2, text=True), None)
    assert batch.tokens is None
    loss.backward()  # the projector takes part with a zero, as several processes need it
    assert all(p.grad is not None and not p.grad.any() for p in lvlm.backbone.projector.parameters())
    mixed, _, _ = loss_of(lvlm, rows_of(2) + rows_of(2, text=True), codes)
    alone = [loss_of(lvlm, rows, c) for rows, c in ((rows_of(2), codes), (rows_of(2, text=True), None))]
    counts = [batches.answer_tokens(batch) for _, batches, batch in alone]
    mean = sum(n * loss for n, (loss, _, _) in zip(counts, alone, strict=True)) / sum(counts)
    torch.testing.assert_close(mixed, mean)


def test_too_long_rows(codes):
    lvlm = tiny_lvlm()
    _, batches, batch = loss_of(lvlm, rows_of(2), codes)
    _, cut_batches, cut_batch = loss_of(lvlm, rows_of(2), codes, max_length=60)
    assert 0 < cut_batches.answer_tokens(cut_batch) < batches.answer_tokens(batch)
    with pytest.raises(TrainingError, match=r"c0.*max_length=20"):
        loss_of(lvlm, rows_of(2), codes, max_length=20)


def test_which_answers_begin_within_a_length(codes):
    backbone = tiny_lvlm().backbone
    talks = [
        Conversation(f"c{n}", (("what " * n + "?", "bag"),), image) for n in range(9) for image in (0, None)
    ]
    for length in range(20, 140, 19):
        begins = answers_within(backbone, length, 16)
        for talk in talks:
            batches = RowBatches(
                backbone,
                make_rows([talk], [talk.image]),
                AlignConfig.build(None, {**FAST, "max_length": length}),
                codes,
            )
            assert begins(talk) == (batches.tokens(0)[2] > 0), (talk, length)


def test_the_rows_that_take_the_most_memory_come_first(codes):
    """As `micro_batch=auto` and `gradient_checkpointing=auto` look for them: an image takes tokens too."""
    talks = [talk(0), Conversation("t", ((talk(0).turns[0][0] + " Please.", "Bag"),))]
    rows = make_rows(talks, [0, None])
    batches = RowBatches(tiny_lvlm().backbone, rows, AlignConfig.build(None, FAST), codes)
    assert batches.tokens(0)[1] > batches.tokens(1)[1]
    assert max(range(2), key=batches.length) == 0


@pytest.mark.parametrize("length", [60, 75, 120, 200, 8192])
def test_what_shares_a_row_is_whole_in_it(codes, length):
    """Conversations behind the one that fills a row were never learned."""
    lvlm = tiny_lvlm()
    for text in (False, True):
        talks = [talk(n % 4, text) for n in range(12)]
        whole = whole_within(lvlm.backbone, length, 16)
        rows = make_rows(talks, [c.image for c in talks], 3, whole)
        assert sorted(c.id for row in rows for c in row.conversations) == sorted(c.id for c in talks)
        for row in rows:
            config = AlignConfig.build(None, {**FAST, "max_length": length})
            batches = RowBatches(lvlm.backbone, [row], config, codes)
            dialogues = batches.make([0], 0).rows[0][1]
            words = lvlm.backbone.prompt, lvlm.backbone.tokenizer
            full = [build_dialogue(*words, c.turns, not text) for c in row.conversations]
            assert len(dialogues) == len(full) and (len(full) == 1 or list(dialogues) == full)
    assert len(rows) == 4 if length == 8192 else len(rows) >= 4


def test_lora_trains_beside_a_frozen_llm_and_merges(tmp_path, codes):
    lvlm, _, _ = train(tmp_path, codes, 2, **{"lora.rank": 2, "lora.targets": ["q_proj", "v_proj"]})
    named = dict(lvlm.backbone.llm.named_parameters())
    assert sum("lora_" in name for name in named) == 8  # A and B of two maps in two layers
    rows = rows_of(4)
    with torch.no_grad():
        trained = loss_of(lvlm, rows, codes)[0]
        factors = take_lora(lvlm.backbone.llm, merge=True)
        merged = loss_of(lvlm, rows, codes)[0]
    torch.testing.assert_close(trained, merged)
    assert set(factors) == {
        f"model.layers.{n}.self_attn.{m}.{f}" for n in (0, 1) for m in ("q_proj", "v_proj") for f in "AB"
    }
    # Without the update the LLM is what it was.
    for name, module in lvlm.backbone.llm.named_modules():
        if f"{name}.A" in factors:
            module.weight.data -= factors[f"{name}.B"] @ factors[f"{name}.A"]
    fresh = tiny_lvlm().backbone.llm.state_dict()
    for name, value in lvlm.backbone.llm.state_dict().items():
        torch.testing.assert_close(value, fresh[name])


def test_lora_goes_on_unrounded_beside_an_llm_in_bfloat16(codes):
    lvlm = tiny_lvlm()
    lvlm.backbone.to(torch.bfloat16)
    config = AlignConfig.build(None, {**FAST, "lora.rank": 2, "lora.alpha": 3.0})
    g, factors = torch.Generator().manual_seed(0), {}
    for name in lora_targets(lvlm.backbone.llm, config.lora):
        rows, columns = lvlm.backbone.llm.get_submodule(name).weight.shape
        factors[f"{name}.A"] = torch.randn(2, columns, generator=g).to(torch.bfloat16)
        factors[f"{name}.B"] = torch.randn(rows, 2, generator=g).to(torch.bfloat16)
    alignment(lvlm, rows_of(), config, 2, codes, factors)
    for name, value in take_lora(lvlm.backbone.llm, merge=False).items():
        torch.testing.assert_close(value, factors[name].float(), rtol=1e-6, atol=0)


def test_lora_layers_and_unknown_targets():
    llm = tiny_lvlm().backbone.llm
    add_lora(llm, LoraConfig(rank=2, layers=1))
    names = {name.rpartition(".lora_A")[0] for name, _ in llm.named_parameters() if "lora_A" in name}
    assert len(names) == 7 and all(".layers.0." in f".{name}" for name in names)
    assert take_lora(llm, merge=False) and "lora" not in str(llm)
    add_lora(llm, LoraConfig(rank=2))  # and again, without a trace of the first time
    assert len(take_lora(llm, merge=True)) == 28
    with pytest.raises(ConfigError, match="No linear map"):
        add_lora(llm, LoraConfig(rank=2, targets=("qproj",)))


def test_long_answers_in_blocks_have_the_same_loss_and_gradient():
    states = torch.randn(1, BLOCK + 50, 8, requires_grad=True)
    head = torch.nn.Linear(8, 11)
    labels = torch.randint(11, (1, BLOCK + 50))
    logits = head(states[:, :-1]).flatten(0, 1)
    plain = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
    blocks = surrogate_alignment(states, head, labels)
    torch.testing.assert_close(plain, blocks)
    ours, theirs = (torch.autograd.grad(loss, [states, head.weight]) for loss in (blocks, plain))
    torch.testing.assert_close(ours, theirs)
