"""Evaluation asks the questions that the samples hold, encodes images once, and keeps the order."""

import json
from dataclasses import replace

import pytest
import torch

from builders import tiny_lvlm
from craft.evaluation import evaluate_lvlm
from craft.evaluation.run import CodeTable
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
    encode = type(lvlm).encode
    monkeypatch.setattr(
        type(lvlm), "encode", lambda self, images, **k: seen.append(len(images)) or encode(self, images, **k)
    )
    assert len(evaluate_lvlm(lvlm, twice, progress=False).samples) == 4
    assert sum(seen) == 2


def test_code_table_gives_the_tokens_back():
    lvlm, samples = tiny_lvlm(), tiny_data().test
    exact = lvlm.encode([sample.image for sample in samples])
    tokens = CodeTable(lvlm, samples, batch_size=2, progress=False).tokens(samples)
    assert torch.equal(tokens.codes, exact.codes)
    assert torch.equal(tokens.quantized, exact.quantized)
    torch.testing.assert_close(tokens.residual, exact.residual)


def test_right_answers_count(monkeypatch, tmp_path):
    lvlm, samples = tiny_lvlm(), tiny_data().test
    answers = {sample.prompt(): sample.answer.upper() for sample in samples}
    answers[samples[0].prompt()] = "nothing of the kind"
    monkeypatch.setattr(type(lvlm), "answer", lambda self, images, asked, **k: [answers[q] for q in asked])
    report = evaluate_lvlm(lvlm, samples, progress=False)
    assert report.accuracy == pytest.approx(4 / 5) and report.unparseable == pytest.approx(1 / 5)
    report.save_samples(tmp_path / "s.jsonl")
    lines = (tmp_path / "s.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == report.samples
