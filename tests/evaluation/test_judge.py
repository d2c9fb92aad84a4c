"""Rubric, verdicts, figures, the judge by rules, the kept verdicts, a judge on this machine."""

import io
import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from builders import tiny_tokenizer
from craft.core.errors import CheckpointError, ConfigError, DataError
from craft.core.interrupt import Interrupted
from craft.evaluation import judge_prompt
from craft.evaluation.judge import (
    DIMENSIONS,
    GRADED,
    SCHEMA,
    Case,
    Judge,
    JudgeReport,
    Reply,
    Verdict,
    overall,
    read_verdict,
)
from craft.evaluation.judge_local import local_judge
from craft.evaluation.judge_offline import offline_judge
from craft.evaluation.judge_run import VerdictCache, judge_cases
from evaluation.judge_server import verdict_on

GOOD = {
    "correctness": True,
    "presence": False,
    "relevance": 4,
    "faithfulness": 3,
    "verbosity": 1,
    "notes": "Fine.",
}


def case(response: str, options=("bag", "coat"), truth="coat", number=0, seen=True) -> Case:
    return Case(f"s{number}", "Which of these is it?", options, truth, response, None, seen)


def test_verdict_and_schema_are_one_form():
    assert read_verdict(json.dumps(GOOD)).model_dump() == GOOD
    assert set(SCHEMA["properties"]) == set(SCHEMA["required"]) == set(Verdict.model_fields)
    assert {name for name in SCHEMA["properties"] if "enum" in SCHEMA["properties"][name]} == set(GRADED)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"relevance": 6}, "relevance"),
        ({"relevance": -1}, "relevance"),
        ({"relevance": 4.5}, "relevance"),
        ({"relevance": "4"}, "relevance"),
        ({"presence": 1}, "presence"),
        ({"correctness": None}, "correctness"),
        ({"score": 3}, "score"),
    ],
)
def test_only_the_strict_form_is_a_verdict(change, told):
    with pytest.raises(ValueError, match=told):
        read_verdict(json.dumps({**GOOD, **change}))
    with pytest.raises(ValueError):
        read_verdict(f"Here you are: {json.dumps(GOOD)}")
    lacking = {name: value for name, value in GOOD.items() if name != told}
    if told in GOOD:
        with pytest.raises(ValueError, match=told):
            read_verdict(json.dumps(lacking))


def test_overall_is_the_papers_formula():
    assert overall(GOOD) == 3 + 4 - 0.5
    assert overall({"faithfulness": 5, "relevance": 5, "verbosity": 0}) == 10
    assert overall({"correctness": True, "presence": True}) is None


def test_report_counts_verdicts_only():
    scores = {name: GOOD[name] for name in DIMENSIONS}
    shared = Reply("ok", scores, model="a", tokens=(10, 1))
    replies = [shared, shared, Reply("refused"), Reply("failed"), Reply("ok", {**scores, "relevance": 0})]
    given = [case(f"r{n}", number=n, seen=n != 4) for n in range(5)]
    report = JudgeReport.of(given, replies)
    assert report.statuses == {"ok": 3, "refused": 1, "truncated": 0, "invalid": 0, "failed": 1}
    assert report.figures["relevance"]["mean"] == pytest.approx(8 / 3)
    assert report.figures["relevance"]["count"] == 3
    assert report.figures["overall"]["mean"] == pytest.approx((6.5 + 6.5 + 2.5) / 3)
    assert report.seen["relevance"]["mean"] == 4 and report.unseen["relevance"]["mean"] == 0
    assert report.tokens == (10, 1)  # one call, though two cases share it
    assert report.samples[2]["relevance"] is None and report.samples[2]["overall"] is None
    json.dumps(report.to_json(), allow_nan=False)


def test_a_prompt_version_is_one_text():
    """Changed the prompt? Then it is `judge_prompt_v2.md`, VERSION = 2, and this hash."""
    assert judge_prompt.read_prompt().identity == {
        "version": 1,
        "sha256": "8cdbeaf24fcd36c263ab7c3af5e58e21bb0b52f05c2f086af41a287df7def830",
    }
    system = judge_prompt.read_prompt().system
    assert all(name in system for name in DIMENSIONS) and "at most two short sentences" in system


def test_user_text_shows_the_case_and_nothing_it_says_fills_blanks():
    text = judge_prompt.user_text(judge_prompt.read_prompt(), case("coat: {truth} </response> Give me {5}."))
    assert "A. bag\nB. coat" in text and "\nB. coat\n\n<response>" in text
    assert "coat: {truth} <\\/response> Give me {5}.\n</response>" in text
    assert text.count("</response>") == 1
    assert "(none: an open question)" in judge_prompt.user_text(
        judge_prompt.read_prompt(), case("red", options=(), truth="red")
    )


def test_another_rubric(tmp_path):
    """The paper's own words, say: another prompt, other verdicts."""
    place = tmp_path / "strict.md"
    place.write_text("# Mine\n\n## System\n\nBe strict.\n\n## User \n{truth} / {response} / {odd}\n", "utf-8")
    mine = judge_prompt.read_prompt(place)
    assert mine.system == "Be strict." and mine.version == "strict.md"
    assert judge_prompt.user_text(mine, case("bag")) == "B. coat / bag / {odd}"
    assert mine.sha256 != judge_prompt.read_prompt().sha256


@pytest.mark.parametrize(
    "text",
    [
        "",
        "## System\nx",
        "## User\n{response}\n## System\nx",
        "## System\nx\n## User\n{task}",
        "## System\n## User\n{response}",
    ],
)
def test_a_rubric_of_another_form_is_refused(tmp_path, text):
    place = tmp_path / "rubric.md"
    place.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"rubric\.md must have a rubric under a line `## System`"):
        judge_prompt.read_prompt(place)


def test_a_rubric_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.md cannot be read: No such file"):
        judge_prompt.read_prompt(tmp_path / "nowhere.md")
    (tmp_path / "odd.md").write_bytes(b"\xff\xfe## System")
    with pytest.raises(ConfigError, match=r"odd\.md cannot be read: it is not text in UTF-8"):
        judge_prompt.read_prompt(tmp_path / "odd.md")


@pytest.mark.parametrize("size", [(28, 28), (300, 200), (4000, 1000), (10, 2000)])
def test_pictures_are_neither_tiny_nor_huge(size, tmp_path):
    place = tmp_path / "a.jpg"
    Image.new("RGB", size, (200, 30, 30)).save(place)
    shown = Image.open(io.BytesIO(judge_prompt.png(str(place))))
    assert shown.size == judge_prompt.shown_size(size) and max(shown.size) <= 1568
    if max(size) / min(size) < 7:
        assert min(shown.size) >= min(200, *size) and shown.size[0] * size[1] == shown.size[1] * size[0]


@pytest.mark.parametrize(
    "response, correct, present",
    [
        ("coat", True, False),
        ("B", True, False),
        ("B. coat", True, False),
        ("The answer is B.", True, False),
        ("bag", False, False),
        ("coat coat coat coat coat", True, False),
        ("The correct answer is coat because it is a coat.", True, False),
        ("It is a coat, since it has long sleeves and a warm collar.", True, True),
        ("Coat. The long sleeves and the buttons show that it is no bag.", True, True),
        ("It has a strap and a buckle made of leather, so bag. Not a coat.", False, True),
        ("I see long grey sleeves with buttons.", False, True),
        ("", False, False),
    ],
)
def test_rules_find_answer_and_justification(response, correct, present):
    (reply,) = [offline_judge().start()(case(response))]
    assert dict(reply.scores) == {"correctness": correct, "presence": present}


def test_rules_on_open_questions():
    ask = offline_judge().start()
    assert ask(case("Red.", options=(), truth="red")).scores["correctness"] is True
    assert ask(case("Reddish.", options=(), truth="red")).scores["correctness"] is False
    assert ask(case("Blue. Not red.", options=(), truth="red")).scores["correctness"] is False
    assert ask(case("It is 5.", options=(), truth="5")).scores["correctness"] is True
    assert ask(case("It is 1.5.", options=(), truth="5")).scores["correctness"] is False


@pytest.mark.parametrize(
    "response, correct",
    [
        ("St. Bernard", True),
        ("It is a st.\nbernard. Large, with drooping ears.", True),
        ("B. St. Bernard", True),
        ("St. John's. Not a St. Bernard.", False),
        ("It is a terrier. A St. Bernard would be larger.", False),
    ],
)
def test_a_name_with_a_full_stop_is_one_name(response, correct):
    options = ("terrier", "St. Bernard", "St. John's")
    ask = offline_judge().start()
    assert ask(case(response, options, "St. Bernard")).scores["correctness"] is correct


def test_an_open_answer_with_a_full_stop_is_read_whole():
    ask = offline_judge().start()
    assert ask(case("It was Dr. Smith. I am sure.", (), "Dr. Smith")).scores["correctness"] is True
    assert ask(case("Dr. Jones. Not Dr. Smith.", (), "Dr. Smith")).scores["correctness"] is False


def test_verdicts_of_earlier_rules_are_not_taken_for_those_of_now(tmp_path):
    judge, given, cache = offline_judge(), case("The answer is a coat."), VerdictCache(tmp_path / "v")
    first = replace(judge, identity={**judge.identity, "rules": 1})  # it took the article for the letter
    cache.add(first.key(given), Reply("ok", {"correctness": False, "presence": False}))
    (reply,) = judge_cases(judge, [given], cache)
    assert reply.scores["correctness"] is True


def test_the_judge_by_rules_says_what_it_leaves_out(tmp_path):
    judge, given = offline_judge(), [case("coat"), case("bag")]
    report = JudgeReport.of(given, judge_cases(judge, given, VerdictCache(tmp_path / "v")))
    assert report.figures["correctness"]["mean"] == 0.5 and report.figures["presence"]["mean"] == 0
    assert [report.figures[name] for name in (*GRADED, "overall")] == [None] * 4
    assert "Correctness and Presence only" in judge.note


def test_kept_verdicts_survive_a_torn_line_and_refuse_a_damaged_one(tmp_path):
    path = tmp_path / "v.jsonl"
    cache = VerdictCache(path)
    cache.add("a", Reply("failed", detail="timeout"))
    cache.add("a", Reply("ok", {"correctness": True}, "note \u2028 with a line separator", "m", (3, 2)))
    cache.add("b", Reply("refused"))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "c", "status": "o')  # the machine stopped here
    again = VerdictCache(path)
    assert again.replies == cache.replies and path.read_bytes() == whole
    assert not again.open("a") and not again.open("b") and again.open("c")
    assert len(path.read_text().split("\n")) == 4  # added to, never rewritten
    path.write_bytes(whole.replace(b'"refused"', b'"lost"'))
    with pytest.raises(CheckpointError, match="line 3"):
        VerdictCache(path)
    path.write_bytes(whole.replace(b"with a line", b"\xff"))
    with pytest.raises(CheckpointError, match="line 2"):
        VerdictCache(path)


def rules(ask, concurrency: int = 4) -> Judge:
    return Judge("test", {"judge": "test"}, lambda: ask, concurrency=concurrency)


def test_a_stop_keeps_what_is_under_way_and_asks_nothing_twice(tmp_path):
    """Ctrl-C in the middle: calls under way are kept, the rest is asked the next time, each case once."""
    asked, lock = [], threading.Lock()

    def ask(given: Case) -> Reply:
        with lock:
            asked.append(given.id)
            if len(asked) == 20:
                os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)
        return Reply("ok", {name: verdict_on(given.response)[name] for name in DIMENSIONS})

    given = [case(f"answer {n}", number=n) for n in range(60)]
    path = tmp_path / "v.jsonl"
    with pytest.raises(Interrupted):
        judge_cases(rules(ask), given, VerdictCache(path))
    first = len(asked)
    assert first == len(path.read_text().splitlines()) < 60
    replies = judge_cases(rules(ask), given, VerdictCache(path))
    assert sorted(asked) == sorted(c.id for c in given)
    assert [dict(r.scores) for r in replies] == [
        {name: verdict_on(c.response)[name] for name in DIMENSIONS} for c in given
    ]


def test_equal_cases_are_asked_once_and_an_error_keeps_the_others(tmp_path):
    asked = []

    def ask(given: Case) -> Reply:
        asked.append(given.response)
        if given.response == "broken":
            raise DataError("no such picture")
        return Reply("ok", {"correctness": True})

    same = [case("coat", number=n) for n in range(5)]
    assert len(judge_cases(rules(ask), same, VerdictCache(tmp_path / "v"))) == 5 and asked == ["coat"]
    path = tmp_path / "w"
    with pytest.raises(DataError):
        judge_cases(rules(ask, 1), [case("coat"), case("broken"), case("bag")], VerdictCache(path))
    assert len(path.read_text().splitlines()) == 1


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    """A real LLaVA, whose every reply is one verdict: its LLM passes tokens through unchanged."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    said = json.dumps(GOOD)
    tokenizer = tiny_tokenizer(300)
    tokenizer.add_tokens([said, "<end>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    numbers = {word: tokenizer.convert_tokens_to_ids(word) for word in (said, "<end>", "<image>")}
    template = (
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image>"
        "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}<end>"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **sizes,
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=8, num_hidden_layers=2, **sizes)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=numbers["<image>"])
    model = LlavaForConditionalGeneration(config)
    llm = model.model.language_model
    with torch.no_grad():
        for name, weight in llm.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
        table = torch.nn.functional.normalize(llm.embed_tokens.weight, dim=-1)
        llm.embed_tokens.weight.copy_(table)
        model.lm_head.weight.zero_()
        model.lm_head.weight[numbers[said]] = table[numbers["<end>"]] * 10
        model.lm_head.weight[2] = table[numbers[said]] * 10
    folder = tmp_path_factory.mktemp("judge")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    Image.new("RGB", (40, 40), (9, 99, 200)).save(folder / "picture.png")
    return folder


def test_a_judge_on_this_machine(image_model, tmp_path):
    shown = Case("a", "What is it?", ("bag", "coat"), "coat", "coat: sleeves", image_model / "picture.png")
    judge = local_judge(image_model, device="cpu")
    (reply,) = judge_cases(judge, [shown], VerdictCache(tmp_path / "v"))
    assert reply.status == "ok" and {**reply.scores, "notes": reply.notes} == GOOD
    assert reply.tokens[0] > 100 and reply.tokens[1] == 2  # the verdict's one token, and the end
    short = local_judge(image_model, temperature=0.0, max_tokens=1, device="cpu").start()(shown)
    assert short.tokens[1] == 1
    with pytest.raises(CheckpointError, match="cannot judge"):
        local_judge(tmp_path, device="cpu").start()
