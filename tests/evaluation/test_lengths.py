"""Questions longer than the LLM's context are refused, and answers longer than a reply announced."""

from dataclasses import replace

import pytest
import torch

from builders import alibi_llm, tiny_images, tiny_lvlm
from craft.core.errors import DataError
from craft.data.chats import Conversation
from craft.evaluation.language import perplexity
from craft.evaluation.lengths import answer_lengths, check_questions
from craft.evaluation.run import evaluate_lvlm
from craft.formats.native import save_native
from craft.judging.answers import explain
from craft.models.context import context_of
from craft.models.decoding import generate_ids
from craft.recipes import adapt, evaluate, transfer, tune
from craft.recipes.adapt import rehearse
from craft.recipes.align import align
from tiny_data import tiny_data

LONG = "why " * 600


def with_one(**changes):
    """The tiny data, and one training and one test sample that are changed."""
    data = tiny_data()
    data.train[2] = replace(data.train[2], **changes)
    data.test[1] = replace(data.test[1], **changes)
    return data, data.train[2].id, data.test[1].id


def test_the_context_of_llms():
    lvlm = tiny_lvlm()
    assert context_of(lvlm.backbone.llm) == 512
    lvlm.backbone.llm.config.rope_parameters = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    assert context_of(lvlm.backbone.llm) == 2048
    assert context_of(alibi_llm("bloom")) is context_of(alibi_llm("mpt")) is None
    assert context_of(alibi_llm("falcon")) is None


@pytest.mark.parametrize("changes", [{"question": LONG}, {"answer": LONG, "choices": (), "correct": None}])
def test_what_is_longer_than_the_context_is_refused_before_any_work(changes, tmp_path):
    data, train, test = with_one(**changes)
    small = {"max_steps": 1, "batch_size": 4, "device": "cpu"}
    fault = r"1 of \d+ question is longer .*512 tokens.*context\): {} \([\d,]+ tokens\)"
    for run in (
        lambda: adapt(tiny_lvlm(), data, tmp_path / "a", **small),
        lambda: rehearse(tiny_lvlm(), data, **small),
        lambda: tune("vision-ft", tiny_lvlm(), data, tmp_path / "b", **small),
        lambda: tune("llm-lora", tiny_lvlm(), data, tmp_path / "c", **small),
        lambda: transfer(surrogates=[tiny_lvlm()], data=[data], work=tmp_path / "d", config={"adapt": small}),
    ):
        with pytest.raises(DataError, match=fault.format(train)):
            run()
    for run in (
        lambda: evaluate(tiny_lvlm(), None, data),
        lambda: (
            evaluate_lvlm(tiny_lvlm(), data.test, protocol="options", progress=False)
            if "question" in changes
            else evaluate(tiny_lvlm(), None, data)
        ),
    ):
        with pytest.raises(DataError, match=fault.format(test)):
            run()
    assert not [path for path in tmp_path.rglob("*.safetensors")]


def test_judges_the_api_and_the_perplexity_refuse_it_too(tmp_path):
    data, _, test = with_one(question=LONG)
    with pytest.raises(DataError, match=rf"longer.*512 tokens.*{test}"):
        explain(tiny_lvlm(), data.test, tmp_path / "judge", {})
    assert not (tmp_path / "judge").exists()
    with pytest.raises(DataError, match=r"question 2 \([\d,]+ tokens\)"):
        tiny_lvlm().answer(tiny_images(2), ["What?", LONG])
    with pytest.raises(DataError, match="question 1"):
        tiny_lvlm().answer(None, [LONG])
    with pytest.raises(DataError, match="'why why"):
        perplexity(tiny_lvlm().backbone, ["short", LONG])


def test_a_question_just_inside_the_context_is_asked():
    lvlm = tiny_lvlm()
    data = tiny_data()

    def length(text):
        prompt = lvlm.backbone.tokenized(text)
        return len(prompt.before) + len(prompt.after) + 16

    words = next(n for n in range(1, 600) if length("why" + " why" * n) > 512)
    for more, fits in ((words - 1, True), (words, False)):
        sample = replace(data.test[0], question="why" + " why" * more, choices=(), correct=None, directive="")
        if fits:
            assert lvlm.answer([sample.image], [sample.prompt()]) is not None
        else:
            with pytest.raises(DataError, match=r"513 tokens|51[4-9] tokens"):
                lvlm.answer([sample.image], [sample.prompt()])
    # the pruned image leaves more room
    with pytest.raises(DataError):
        check_questions(lvlm, [sample], directive="")
    check_questions(lvlm, [sample], directive="", keep_ratio=0.25)


def test_an_answer_ends_with_the_context_whatever_its_batch_mates():
    lvlm = tiny_lvlm()
    lvlm.backbone.llm.config.max_position_embeddings = 60
    lvlm.backbone.llm.generation_config.eos_token_id = None
    inputs = lvlm.backbone.inputs(None, ["Why is it a coat?", "Why?"])
    rows = generate_ids(lvlm.backbone, inputs, 100)
    sizes = inputs["attention_mask"].sum(dim=1).tolist()
    assert all(len(row) + size <= 60 for row, size in zip(rows, sizes, strict=True))
    alone = generate_ids(lvlm.backbone, lvlm.backbone.inputs(None, ["Why?"]), 100)[0]
    assert rows[1] == alone and torch.tensor(rows[1]).numel()


def test_align_counts_out_what_the_llm_cannot_read(tmp_path, capsys):
    picture = (tiny_images(1)[0].permute(1, 2, 0) * 127 + 128).byte().numpy()
    turns = [
        Conversation("good", (("What?", "coat"),), None),
        Conversation("long", ((LONG, "coat"),), None),
        Conversation("seen", (("What?", "bag"),), picture),
    ]
    folder = save_native(tmp_path / "tiny", "llama", tiny_lvlm())
    align(
        folder,
        tmp_path / "tiny" / "visual",
        turns,
        stage="2",
        out=tmp_path / "out",
        max_steps=1,
        device="cpu",
    )
    assert "left out: 1 of the 3 conversations in `data` (long)" in capsys.readouterr().err


def test_long_answers_are_announced_with_their_share_and_the_remedy(capsys, tmp_path):
    data = tiny_data()
    name = "Aston Martin V8 Vantage Convertible 2012"
    for split in (data.train, data.test):
        for number, sample in enumerate(split[:2]):
            choices = (name, *sample.choices[1:])
            split[number] = replace(sample, choices=choices, answer=name, correct=0, label=None)
    lvlm = tiny_lvlm()
    lengths = answer_lengths(lvlm, data.test, 5)
    assert [n > 5 for n in lengths] == [True, True] + [False] * (len(data.test) - 2)
    remedy = f"--max-new-tokens {max(lengths)}"
    evaluate(lvlm, None, data)
    said = capsys.readouterr().err
    assert f"(2 of {len(data.test)})" in said and remedy in said and "letter" in said and name in said
    evaluate(lvlm, None, data, max_new_tokens=max(lengths))
    assert "exact match" not in capsys.readouterr().err
    adapt(lvlm, data, tmp_path / "run", max_steps=1, batch_size=4, device="cpu")
    said = capsys.readouterr().err
    assert said.index("cannot be an exact match in `craft eval`") < said.index("adapting the vision tower")
    letters = [replace(s, answer="A", correct=0) for s in data.test]
    assert not any(answer_lengths(lvlm, letters, 5))
