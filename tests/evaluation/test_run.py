"""Evaluation asks the questions that the samples hold, encodes images once, and keeps the order."""

from dataclasses import replace

import pytest

from builders import tiny_lvlm
from craft.core.errors import DataError
from craft.evaluation import run as running
from craft.evaluation.ask import Replies
from craft.evaluation.report import Report, read_samples
from craft.evaluation.run import evaluate_lvlm, option_texts
from tiny_data import tiny_data


def test_answers_are_those_of_the_lvlm_in_order():
    lvlm, samples = tiny_lvlm(), tiny_data(test=7).test
    report = evaluate_lvlm(lvlm, samples, batch_size=3, progress=False)
    assert [row["id"] for row in report.samples] == [sample.id for sample in samples]
    for sample, row in zip(samples, report.samples, strict=True):
        assert row["prompt"] == sample.prompt()
        assert [row["prediction"]] == lvlm.answer([sample.image], [sample.prompt()])
    assert report.unseen is not None and report.chance == 0.25


def test_each_image_is_encoded_once(monkeypatch):
    lvlm, samples = tiny_lvlm(), tiny_data(test=2).test
    twice = [replace(s, id=f"{s.id} {q}", question=q) for s in samples for q in ("Which?", "What is it?")]
    seen = []
    visual = type(lvlm.visual)
    encode = visual.encode
    monkeypatch.setattr(visual, "encode", lambda self, i, **k: seen.append(len(i)) or encode(self, i, **k))
    report = evaluate_lvlm(lvlm, twice, progress=False)
    assert len(report.samples) == 4 and sum(seen) == 2
    assert len({row["image_hash"] for row in report.samples}) == 2


def test_right_answers_count(monkeypatch, tmp_path):
    lvlm, samples = tiny_lvlm(), tiny_data().test
    answers = {sample.prompt(): sample.answer.upper() for sample in samples}
    answers[samples[0].prompt()] = "nothing of the kind"
    monkeypatch.setattr(
        running,
        "ask",
        lambda lvlm, i, asked, options, **k: Replies([answers[q] for q in asked], [[]] * len(asked)),
    )
    report = evaluate_lvlm(lvlm, samples, progress=False)
    assert report.accuracy == pytest.approx(4 / 5) and report.unparseable == pytest.approx(1 / 5)
    report.save_samples(tmp_path / "s.jsonl")
    assert read_samples(tmp_path / "s.jsonl") == report.samples


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ('{"id": 1', "line 1: not valid JSON"),
        ('{"id": "a"}\n', "line 1: not an answer"),
    ],
)
def test_damaged_answers_are_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "s.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_samples(tmp_path / "s.jsonl")


def test_what_else_ends_a_line_is_part_of_an_answer(tmp_path):
    row = {"id": "a", "prompt": "a\u2028b", "answer": "c", "prediction": "c\u0085", "strict": False}
    path = tmp_path / "samples-0.jsonl"
    Report.of([{**row, "lenient": True, "unparseable": False, "seen": True, "choices": []}]).save_samples(
        path
    )
    assert read_samples(path)[0]["prediction"] == "c\u0085"


def test_option_scoring_beside_generation_and_alone():
    lvlm, samples = tiny_lvlm(), tiny_data(test=9).test
    both = evaluate_lvlm(lvlm, samples, protocol="both", progress=False)
    alone = evaluate_lvlm(lvlm, samples, protocol="options", progress=False)
    plain = evaluate_lvlm(lvlm, samples, progress=False)
    assert [row["prediction"] for row in both.samples] == [row["prediction"] for row in plain.samples]
    assert plain.scored is None and plain.agreement is None and "scores" not in plain.samples[0]
    likeliest = [row["choices"][max(range(4), key=row["scores"].__getitem__)] for row in both.samples]
    assert likeliest == [row["prediction"] for row in alone.samples]
    hits = sum(text == row["answer"] for text, row in zip(likeliest, both.samples, strict=True))
    assert both.scored == alone.accuracy == alone.scored == pytest.approx(hits / 9)
    assert alone.unparseable == 0 and alone.agreement is None
    named = [row["prediction"] == text for row, text in zip(both.samples, likeliest, strict=True)]
    assert both.agreement is not None and both.agreement >= sum(named) / 9
    assert alone.settings["protocol"] == "options"


def test_open_questions_have_no_options_to_score():
    sample = replace(tiny_data().test[0], choices=(), correct=None)
    with pytest.raises(DataError, match=r"and bag-\d+ has none"):
        evaluate_lvlm(tiny_lvlm(), [sample], protocol="options", progress=False)
    report = evaluate_lvlm(tiny_lvlm(), [sample], protocol="both", progress=False)
    assert report.scored is None


def test_options_are_worded_as_the_answer_is():
    sample = tiny_data().test[0]
    assert option_texts(sample) == list(sample.choices)
    letter = "ABCD"[sample.correct]
    assert option_texts(replace(sample, answer=letter)) == ["A", "B", "C", "D"]
    swapped = replace(sample, answer="B", choices=("A", "B", "C", "D"), correct=1)
    assert option_texts(swapped) == ["A", "B", "C", "D"]
