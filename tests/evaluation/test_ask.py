"""A reply depends on its question and image alone: not on the batch, on what is read once, or on caches."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import tiny_lvlm
from craft.core.errors import ConfigError, DataError
from craft.evaluation.ask import ask, plan
from craft.evaluation.run import evaluate_lvlm
from craft.formats.code_cache import CodeCache
from craft.models import decoding, sampling
from craft.quantize import search
from craft.quantize.search import SEARCHES, Choice, exact
from tiny_data import tiny_data

ASKED = ("Which?", "What is it, of all the things there are?", "Name the animal.")


@pytest.fixture(scope="module")
def samples():
    """19 questions on 7 images, in no order: three on most."""
    several = [
        replace(sample, id=f"{sample.id} {question}", question=question)
        for question in ASKED
        for sample in tiny_data(test=7).test
    ]
    return several[:19]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def expected(request, samples):
    """The LVLM, and its answers to one question at a time with nothing cached."""
    lvlm = tiny_lvlm(request.param)
    return lvlm, [lvlm.answer([sample.image], [sample.prompt()])[0] for sample in samples]


@pytest.mark.parametrize("shared", [0.75, 0], ids=["read once", "read apart"])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_the_same_predictions_whatever_the_batch_and_caches(
    expected, samples, tmp_path, monkeypatch, batch_size, shared
):
    lvlm, answers = expected
    monkeypatch.setattr(decoding, "SHARED", shared)
    CodeCache(tmp_path).encode(lvlm.visual, [sample.image for sample in samples[:9]], progress=False)
    for cache in (None, CodeCache(tmp_path)):  # nothing kept; partly found on disk
        report = evaluate_lvlm(lvlm, samples, batch_size=batch_size, cache=cache, progress=False)
        assert [row["prediction"] for row in report.samples] == answers
        assert [row["id"] for row in report.samples] == [sample.id for sample in samples]


@pytest.mark.parametrize("choice", ["auto", "fused"])
def test_the_same_predictions_by_another_search(samples, capsys, monkeypatch, choice):
    """`fused` needs a GPU: here `exact` runs under its name."""
    lvlm = tiny_lvlm()
    monkeypatch.setattr(search, "obstacle", lambda name, tables: None)
    monkeypatch.setattr(search, "choose", lambda tables: Choice("fused", "another machine"))
    plain = evaluate_lvlm(lvlm, samples, progress=False)
    assert "search" not in plain.settings and "search" not in capsys.readouterr().err
    used = []
    monkeypatch.setitem(SEARCHES, "fused", lambda x, tables: used.append(len(x)) or exact(x, tables))
    report = evaluate_lvlm(lvlm, samples, progress=False, search=choice)
    assert [row["prediction"] for row in report.samples] == [row["prediction"] for row in plain.samples]
    assert report.settings["search"] == "fused" and used
    assert "search: fused (" in capsys.readouterr().err


def test_a_search_that_does_not_run_here_is_refused_before_a_picture_is_read(samples):
    lvlm = tiny_lvlm()
    nowhere = [replace(sample, image="nowhere.png") for sample in samples]
    with pytest.raises(ConfigError, match="search=fused is a kernel for CUDA"):
        evaluate_lvlm(lvlm, nowhere, progress=False, search="fused")
    with pytest.raises(DataError, match=r"nowhere\.png"):
        evaluate_lvlm(lvlm, nowhere, progress=False)


def test_scores_do_not_depend_on_the_batch(expected, samples):
    lvlm, _ = expected
    found = [
        [
            row["scores"]
            for row in evaluate_lvlm(lvlm, samples, batch_size=size, protocol="both", progress=False).samples
        ]
        for size in (1, 7, 32)
    ]
    for one, other in zip(found[0] * 2, found[1] + found[2], strict=True):
        assert one == pytest.approx(other, abs=2e-4)


def test_what_is_too_close_to_call_is_asked_alone(samples, monkeypatch):
    lvlm, few = tiny_lvlm(), samples[:8]
    images = CodeCache().encode(lvlm.visual, [sample.image for sample in few], progress=False)
    prompts = [sample.prompt() for sample in few]
    plain = ask(lvlm, images, prompts, progress=False)
    assert plain.alone == []
    monkeypatch.setattr(sampling, "TIES", {})
    monkeypatch.setattr(sampling.torch, "finfo", lambda dtype: type("Coarse", (), {"eps": 1.0}))
    again = ask(lvlm, images, prompts, batch_size=3, progress=False)
    assert again.alone == list(range(8))  # batches of 3, 3 and 2: nobody was alone before
    assert again.texts == plain.texts


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=40), st.integers(1, 9))
def test_the_plan_asks_each_question_once_and_keeps_images_together(questions, size):
    images, lengths = zip(*questions, strict=True)
    batches = plan(images, lengths, size)
    order = [number for batch in batches for number in batch]
    assert sorted(order) == list(range(len(questions)))
    assert all(len(batch) == size for batch in batches[:-1]) and 0 < len(batches[-1]) <= size
    runs = [
        image
        for at, number in enumerate(order)
        if (image := images[number]) != images[order[at - 1]] or not at
    ]
    assert len(runs) <= len(set(images)) + 1  # each image's questions stand together
    if len(set(images)) == len(images):
        assert [lengths[number] for number in order] == sorted(lengths)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_shipped_model_answers_the_same_in_every_batch(dtype, monkeypatch):
    """The trained model, in the dtype that GPUs use too: rounding is coarse there, and leads are small."""
    import craft

    lvlm = craft.load("craft-tiny/qwen2", dtype=dtype)
    few = craft.data.load_data("apparel").test[:48]
    twice = [*few, *(replace(sample, question="What kind of thing is this?") for sample in few[:24])]
    cache = CodeCache()
    found = []
    for size, shared in ((1, 0), (7, 0.75), (32, 0), (32, 0.75)):
        monkeypatch.setattr(decoding, "SHARED", shared)
        report = evaluate_lvlm(lvlm, twice, batch_size=size, cache=cache, progress=False)
        found.append([row["prediction"] for row in report.samples])
    assert found[1] == found[0] and found[2] == found[0] and found[3] == found[0]
