"""What the recipe of craft-tiny/smollm2 records after its training."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from builders import tiny_visual
from craft.evaluation.language import INSTRUCTIONS

SCORES = {"text": 0.5, "name": 0.5, "justify": 0.5, "reasons": 1.0, "words": 2.0}


@pytest.mark.parametrize("start, made", [(None, "stages 1 and 2"), (Path("leg"), "stage 2")])
def test_the_record_of_a_training(monkeypatch, start, made):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    from train_tiny.smollm2 import recorded_settings
    from train_tiny.smollm2_scores import card

    paths = {"cache": Path("c"), "visual": Path("v"), "out": Path("o"), "start": start}
    numbers = {"first": 960, "pictures": 1280, "own": 96, "rank": 6, "test": 120}
    settings = recorded_settings(argparse.Namespace(**paths, **numbers))
    if start is not None:
        del numbers["first"]  # was not done
    assert json.loads(json.dumps(settings)) == {**numbers, "start": start is not None}
    language = {"perplexity": 20.0, "answers": ["yes"] * len(INSTRUCTIONS)}
    text = card(settings, {"test": SCORES}, {"before": language, "after": language}, 12.3, "one core")
    assert made in text and "in 12 minutes" in text and ("960 and 1280" in text) == (start is None)


def test_a_resumed_training_has_the_answers_it_began_with(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    from train_tiny import smollm2

    calls = []

    def generate(backbone, tokens, prompts, max_new_tokens):
        calls.append(list(prompts))
        return [f"answer {len(calls)}." if prompt else "" for prompt in prompts]

    monkeypatch.setattr(smollm2, "generate", generate)
    backbone, path = argparse.Namespace(), tmp_path / "out" / "own.json"
    first = smollm2.stored_answers(path, backbone, ["a", "", "b"])
    assert [c.turns for c in first] == [(("a", "answer 1."),), (("b", "answer 1."),)]
    assert smollm2.stored_answers(path, backbone, ["a", "", "b"]) == first and len(calls) == 1
    assert smollm2.stored_answers(path, backbone, ["c"])[0].turns == (("c", "answer 2."),)


def test_thinned_codes_are_seeded_and_within_their_bounds(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    from train_tiny.smollm2 import pictures

    visual, images = tiny_visual(), [0, 1, 2, 3] * 8
    codes = torch.zeros(4, 16, 2, dtype=torch.int16)
    thinned = pictures(visual, codes, least=0.5, seed=1)
    mask = thinned.tokens(images).attention_mask
    counts = mask.sum(1)
    assert counts.min() >= 8 and counts.max() <= 16 and len(counts.unique()) > 2
    assert torch.equal(mask, thinned.tokens(images).attention_mask)
    assert not torch.equal(mask, pictures(visual, codes, least=0.5, seed=2).tokens(images).attention_mask)
    assert pictures(visual, codes).tokens(images).attention_mask is None
