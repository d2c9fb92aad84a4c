"""Sampling: greedy rows are those of `LVLM.answer`, random ones depend on nothing but their own settings."""

import pytest
import torch

import craft
from craft.models.conversation import Turn, build_conversation
from craft.models.sampling import AnswerText, Batch, Sampling, describe, draw, overlap


@pytest.fixture(scope="module")
def lvlm():
    return craft.load("craft-tiny/llama", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def samples():
    return craft.data.load_data("apparel").test[:24]


def rows_of(lvlm, samples):
    tokens = lvlm.encode([sample.image for sample in samples])
    images = lvlm.backbone.read(tokens)
    rows = []
    for image, sample in zip(images, samples, strict=True):
        before, after = build_conversation(
            lvlm.backbone.prompt, lvlm.backbone.tokenizer, [Turn("user", sample.prompt(), 1)]
        )
        rows.append([torch.tensor(before), image, torch.tensor(after)])
    return rows


def written(lvlm, rows, samplings):
    batch, texts = (
        Batch(lvlm.backbone, rows, samplings),
        [AnswerText(lvlm.backbone, s.stop) for s in samplings],
    )
    while not batch.finished:
        for row, token in batch.step():
            texts[row].add(token.id)
            batch.done[row] = batch.done[row] or texts[row].stopped
    for text in texts:
        text.close()
    return [text.text for text in texts]


def test_greedy_rows_are_the_answers_of_the_model(lvlm, samples):
    rows = rows_of(lvlm, samples)
    for length in (1, 5, 12):
        alone = [
            lvlm.answer([sample.image], [sample.prompt()], max_new_tokens=length)[0] for sample in samples
        ]
        assert written(lvlm, rows, [Sampling(max_new_tokens=length)] * len(rows)) == alone
        mixed = [Sampling(max_new_tokens=length + n % 2) for n in range(len(rows))]
        assert written(lvlm, rows, mixed)[::2] == alone[::2]


def test_a_tie_in_a_batch_is_decided_alone(lvlm, samples, monkeypatch):
    """Every step is a tie here, and every row is still what it is alone."""
    rows = rows_of(lvlm, samples[:4])
    plain = written(lvlm, rows, [Sampling(max_new_tokens=4)] * 4)
    monkeypatch.setattr("craft.models.sampling.TIES", {torch.float32: 1e12})
    calls = []
    alone = Batch._alone
    monkeypatch.setattr(Batch, "_alone", lambda self, row: calls.append(row) or alone(self, row))
    assert written(lvlm, rows, [Sampling(max_new_tokens=4)] * 4) == plain
    assert len(calls) >= 8


def test_a_random_row_depends_on_its_own_seed_alone(lvlm, samples):
    rows = rows_of(lvlm, samples[:6])
    random = [Sampling(max_new_tokens=8, temperature=1.5, top_p=0.9, seed=seed) for seed in range(6)]
    together = written(lvlm, rows, random)
    assert [
        written(lvlm, [row], [sampling])[0] for row, sampling in zip(rows, random, strict=True)
    ] == together
    assert written(lvlm, rows, [Sampling(max_new_tokens=8, temperature=1.5, seed=9)] * 6) != together
    cold = [Sampling(max_new_tokens=8, temperature=1e-6)] * 6
    assert written(lvlm, rows, cold) == written(lvlm, rows, [Sampling(max_new_tokens=8)] * 6)


def test_a_draw_follows_the_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    random = torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw(logits, Sampling(temperature=1.0), random) for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, logits.softmax(0), atol=0.03)
    nucleus = [draw(logits, Sampling(temperature=1.0, top_p=0.7), random) for _ in range(500)]
    assert set(nucleus) == {0, 1}  # 0.64, and 0.24 that begins below 0.7
    assert {draw(logits, Sampling(temperature=1.0, top_p=1e-9), random) for _ in range(50)} == {0}


def test_log_probabilities_are_those_of_the_model():
    logits = torch.tensor([2.0, 1.0, 0.0])
    token = describe(1, logits, 2)
    assert token.logprob == pytest.approx(float(logits.log_softmax(0)[1]))
    assert [index for index, _ in token.top] == [0, 1]
    assert describe(1, logits, None).logprob is None
    assert describe(1, logits, 0).top == ()


def test_the_text_of_a_stream_is_the_text_of_the_answer(lvlm):
    tokenizer = lvlm.backbone.tokenizer
    for sentence in ("a dog, a cat and a café 🙂 at 5 %", " spaces  inside ", "x"):
        ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
        text = AnswerText(lvlm.backbone)
        pieces = [text.add(token) for token in ids] + [text.close()]
        assert "".join(pieces) == craft.models.prompts.decode(tokenizer, ids)
        assert all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize(
    "stop, text", [(("cat",), "a dog, a "), (("zebra",), "a dog, a cat"), (("t", "og"), "a d")]
)
def test_nothing_follows_a_stop_text(lvlm, stop, text):
    ids = lvlm.backbone.tokenizer("a dog, a cat", add_special_tokens=False)["input_ids"]
    answer, pieces = AnswerText(lvlm.backbone, stop), []
    for token in ids:
        pieces.append(answer.add(token))
        if answer.stopped:
            break
    pieces.append(answer.close())
    assert "".join(pieces) == text == answer.text


@pytest.mark.parametrize(
    "text, stop, length", [("abcST", "STOP", 2), ("abc", "STOP", 0), ("S", "S", 0), ("aa", "aab", 2)]
)
def test_overlap(text, stop, length):
    assert overlap(text, stop) == length
