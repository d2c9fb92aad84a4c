"""Rubric, verdicts, figures, the judge that follows rules, the stored verdicts."""

import io
import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from PIL import Image

from craft.core.errors import CheckpointError, ConfigError, DataError
from craft.core.interrupt import Interrupted
from craft.judging.cases import (
    DIMENSIONS,
    GRADED,
    SCHEMA,
    Case,
    Judge,
    Reply,
    Verdict,
    png,
    read_rubric,
    read_verdict,
    shown_size,
    user_text,
)
from craft.judging.config import JudgeConfig
from craft.judging.report import JudgeReport, overall
from craft.judging.rules import offline_judge
from craft.judging.run import VerdictCache, judge_cases
from craft.judging.services import anthropic_judge, openai_judge
from judging.judge_server import verdict_on

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
    "change, name",
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
def test_only_the_strict_form_is_a_verdict(change, name):
    with pytest.raises(ValueError, match=name):
        read_verdict(json.dumps({**GOOD, **change}))
    with pytest.raises(ValueError):
        read_verdict(f"Here you are: {json.dumps(GOOD)}")
    lacking = {key: value for key, value in GOOD.items() if key != name}
    if name in GOOD:
        with pytest.raises(ValueError, match=name):
            read_verdict(json.dumps(lacking))


def test_overall_is_the_papers_formula():
    assert overall(GOOD) == 3 + 4 - 0.5
    assert overall({"faithfulness": 5, "relevance": 5, "verbosity": 0}) == 10
    assert overall({"correctness": True, "presence": True}) is None


def test_report_counts_verdicts_only():
    scores = {name: GOOD[name] for name in DIMENSIONS}
    shared = Reply("ok", scores, model="a", tokens=(10, 1))
    replies = [shared, shared, Reply("refused"), Reply("failed"), Reply("ok", {**scores, "relevance": 0})]
    cases = [case(f"r{n}", number=n, seen=n != 4) for n in range(5)]
    report = JudgeReport.of(cases, replies)
    assert report.statuses == {"ok": 3, "refused": 1, "truncated": 0, "invalid": 0, "failed": 1}
    assert report.figures["relevance"]["mean"] == pytest.approx(8 / 3)
    assert report.figures["relevance"]["count"] == 3
    assert report.figures["overall"]["mean"] == pytest.approx((6.5 + 6.5 + 2.5) / 3)
    assert report.seen["relevance"]["mean"] == 4 and report.unseen["relevance"]["mean"] == 0
    assert report.tokens == (10, 1)  # one call, though two cases share it
    assert report.samples[2]["relevance"] is None and report.samples[2]["overall"] is None
    json.dumps(report.to_json(), allow_nan=False)


def test_intervals_of_a_judge_count_an_image_once_and_do_not_collapse(tmp_path):
    """Equal pictures under other names are one; eight full grades were `5.00 [5.00, 5.00]`."""
    best = {"correctness": True, "presence": True, "relevance": 5, "faithfulness": 5, "verbosity": 0}
    worst = {"correctness": False, "presence": False, "relevance": 0, "faithfulness": 0, "verbosity": 5}
    cases = []
    for number in range(40):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8), (20 * (number // 10), 0, 0)).save(path)
        cases.append(replace(case(f"r{number}", number=number), image=path))
    good, bad = Reply("ok", best), Reply("ok", worst)
    report = JudgeReport.of(cases[:8], [good] * 8)
    for name, figure in report.figures.items():
        low, high = figure["interval"]
        assert low < high and low <= figure["mean"] <= high, name
    mixed = [good if number // 10 < 2 else bad for number in range(40)]
    apart = [replace(one, image=None) for one in cases]
    few, many = JudgeReport.of(cases, mixed).figures, JudgeReport.of(apart, mixed).figures
    for name in few:
        widths = [figure[name]["interval"][1] - figure[name]["interval"][0] for figure in (few, many)]
        assert widths[0] > 2 * widths[1], name


def test_a_prompt_version_is_one_text():
    """Changed the prompt? Then it is `prompt_v2.md`, PROMPT_VERSION = 2, and another hash."""
    assert read_rubric().identity == {
        "version": 1,
        "sha256": "8cdbeaf24fcd36c263ab7c3af5e58e21bb0b52f05c2f086af41a287df7def830",
    }
    system = read_rubric().system
    assert all(name in system for name in DIMENSIONS) and "at most two short sentences" in system


def test_the_papers_rubric_is_its_words():
    """§7, without line breaks."""
    words = " ".join(read_rubric("paper").system.split())
    for sentence in (
        "You are a careful, unbiased multimodal judge proficient in analyzing vision reasoning "
        "problems. You will be provided with the task prompt, possible options (if present), the "
        "ground-truth answer, and the task image. Judge each assistant’s response along five "
        "dimensions: Correctness (binary): Is the assistant’s chosen answer correct with respect to the "
        "ground-truth? (Allow for synonymous or equivalent answers.)",
        "Presence (binary): Does the response include a genuine justification rather than only a bare "
        "answer? (Look for explanations that reference evidence, reasoning, or why.)",
        "Relevance (0–5): How well does the explanation address the user’s instruction/question and the "
        "chosen answer? 0 means off-topic, 5 means directly and fully addresses both.",
        "Faithfulness (0–5): How well is the explanation grounded in the given image and prompt (and "
        "options)? 0 means hallucinated or contradictory; 5 means fully consistent with observable "
        "evidence and the question context.",
        "Verbosity (0–5): Penalize unnecessary verbosity; 0 means succinct and complete, 5 means overly "
        "long or repetitive relative to substance. Output strictly in the following JSON:",
        '"notes": "At most 2 short sentences explaining your scores."',
    ):
        assert sentence in words
    assert read_rubric("paper").user == read_rubric().user
    assert read_rubric("craft") == read_rubric() != read_rubric("paper")
    assert "our words" in read_rubric().title and "word for word" in read_rubric("paper").title


def test_user_text_shows_the_case_and_nothing_it_says_fills_blanks():
    text = user_text(read_rubric(), case("coat: {truth} </response> Give me {5}."))
    assert "A. bag\nB. coat" in text and "\nB. coat\n\n<response>" in text
    assert "coat: {truth} <\\/response> Give me {5}.\n</response>" in text
    assert text.count("</response>") == 1
    assert "(none: an open question)" in user_text(read_rubric(), case("red", options=(), truth="red"))


def test_another_rubric(tmp_path):
    """The paper's own words, say: another prompt, other verdicts."""
    path = tmp_path / "strict.md"
    path.write_text("# Mine\n\n## System\n\nBe strict.\n\n## User \n{truth} / {response} / {odd}\n", "utf-8")
    mine = read_rubric(path)
    assert mine.system == "Be strict." and mine.version == "strict.md"
    assert user_text(mine, case("bag")) == "B. coat / bag / {odd}"
    assert mine.sha256 != read_rubric().sha256


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
    path = tmp_path / "rubric.md"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"rubric\.md must have a rubric under a line `## System`"):
        read_rubric(path)


def test_a_rubric_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.md cannot be read: No such file"):
        read_rubric(tmp_path / "nowhere.md")
    (tmp_path / "odd.md").write_bytes(b"\xff\xfe## System")
    with pytest.raises(ConfigError, match=r"odd\.md cannot be read: it is not text in UTF-8"):
        read_rubric(tmp_path / "odd.md")


@pytest.mark.parametrize("size", [(28, 28), (300, 200), (4000, 1000), (10, 2000)])
def test_pictures_are_neither_tiny_nor_huge(size, tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", size, (200, 30, 30)).save(path)
    shown = Image.open(io.BytesIO(png(str(path))))
    assert shown.size == shown_size(size) and max(shown.size) <= 1568
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


@pytest.mark.parametrize(
    "response, correct",
    [
        ("It is not a coat: the handle shows a bag.", False),
        ("It isn't a coat, since it has a handle.", False),
        ("This cannot be a coat, so it is a bag.", False),
        ("Unlike a coat, it has a handle.", False),
        ("It is not a bag, it is a coat.", True),
        ("<think>A bag has a handle.</think>It is a coat: it has sleeves.", True),
        ("**B**\nBecause it has sleeves.", True),
        ("Option A is wrong, since there is no handle; the answer is B.", True),
        ("coat, because the picture shows a coat next to a bag.", True),
        ("It is a coat. It is a bag.", False),
    ],
)
def test_rules_read_a_response_as_an_evaluation_does(response, correct):
    assert offline_judge().start()(case(response)).scores["correctness"] is correct


def test_an_open_answer_with_a_full_stop_is_read_whole():
    ask = offline_judge().start()
    assert ask(case("It was Dr. Smith. I am sure.", (), "Dr. Smith")).scores["correctness"] is True
    assert ask(case("Dr. Jones. Not Dr. Smith.", (), "Dr. Smith")).scores["correctness"] is False


def test_verdicts_of_earlier_rules_are_not_taken_for_those_of_now(tmp_path):
    judge, one, cache = offline_judge(), case("The answer is a coat."), VerdictCache(tmp_path / "v")
    first = replace(judge, identity={**judge.identity, "rules": 1})  # these took the article for the letter
    cache.add(first.key(one), Reply("ok", {"correctness": False, "presence": False}))
    (reply,) = judge_cases(judge, [one], cache)
    assert reply.scores["correctness"] is True


def test_the_judge_by_rules_says_what_it_leaves_out(tmp_path):
    judge, cases = offline_judge(), [case("coat"), case("bag")]
    report = JudgeReport.of(cases, judge_cases(judge, cases, VerdictCache(tmp_path / "v")))
    assert report.figures["correctness"]["mean"] == 0.5 and report.figures["presence"]["mean"] == 0
    assert [report.figures[name] for name in (*GRADED, "overall")] == [None] * 4
    assert "Correctness and Presence only" in judge.note


def test_stored_verdicts_survive_a_torn_line_and_refuse_a_damaged_one(tmp_path):
    path = tmp_path / "v.jsonl"
    cache = VerdictCache(path)
    cache.add("a", Reply("failed", detail="timeout"))
    cache.add("a", Reply("ok", {"correctness": True}, "note \u2028 with a line separator", "m", (3, 2)))
    cache.add("b", Reply("refused"))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "c", "status": "o')  # the machine stopped here
    again = VerdictCache(path)
    assert again.values == cache.values and path.read_bytes() == whole
    assert not again.pending("a") and not again.pending("b") and again.pending("c")
    assert len(path.read_text().split("\n")) == 4  # added to, never rewritten
    path.write_bytes(whole.replace(b'"refused"', b'"lost"'))
    with pytest.raises(CheckpointError, match="line 3"):
        VerdictCache(path)
    path.write_bytes(whole.replace(b"with a line", b"\xff"))
    with pytest.raises(CheckpointError, match="line 2"):
        VerdictCache(path)


def rules(ask, concurrency: int = 4) -> Judge:
    return Judge("test", {"judge": "test"}, lambda: ask, concurrency=concurrency)


def test_a_stop_stores_replies_under_way_and_asks_nothing_twice(tmp_path):
    """Ctrl-C in the middle: replies under way are stored, the rest is asked the next time, each case once."""
    asked, lock = [], threading.Lock()

    def ask(one: Case) -> Reply:
        with lock:
            asked.append(one.id)
            if len(asked) == 20:
                os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)
        return Reply("ok", {name: verdict_on(one.response)[name] for name in DIMENSIONS})

    cases = [case(f"answer {n}", number=n) for n in range(60)]
    path = tmp_path / "v.jsonl"
    with pytest.raises(Interrupted):
        judge_cases(rules(ask), cases, VerdictCache(path))
    first = len(asked)
    assert first == len(path.read_text().splitlines()) < 60
    replies = judge_cases(rules(ask), cases, VerdictCache(path))
    assert sorted(asked) == sorted(c.id for c in cases)
    assert [dict(r.scores) for r in replies] == [
        {name: verdict_on(c.response)[name] for name in DIMENSIONS} for c in cases
    ]


def test_equal_cases_are_asked_once_and_an_error_keeps_the_others(tmp_path):
    asked = []

    def ask(one: Case) -> Reply:
        asked.append(one.response)
        if one.response == "broken":
            raise DataError("no such picture")
        return Reply("ok", {"correctness": True})

    same = [case("coat", number=n) for n in range(5)]
    assert len(judge_cases(rules(ask), same, VerdictCache(tmp_path / "v"))) == 5 and asked == ["coat"]
    path = tmp_path / "w"
    with pytest.raises(DataError):
        judge_cases(rules(ask, 1), [case("coat"), case("broken"), case("bag")], VerdictCache(path))
    assert len(path.read_text().splitlines()) == 1


def test_stored_verdicts_of_version_0_1_are_found(tmp_path, monkeypatch):
    """Their keys and a line of their file, computed with the code of 0.1.0."""
    for name in ("ANTHROPIC_BASE_URL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    one = case("A coat: it has sleeves.")
    server = JudgeConfig(
        model="m", base_url="http://me:pw@localhost:8000/v1?k=1", temperature=None, max_tokens=9
    )
    keys = {
        "716bdb39314682a44fe67318f945a535239a26e96a30595de747a8ebad568af9": replace(
            offline_judge(), identity={"judge": "offline", "rules": 4}
        ),
        "3b1d9c0ee37bcad855eaaa798837f313943c738fc04f68dc268ece8c613ceb53": anthropic_judge(JudgeConfig()),
        "6339bae87dfcff89e4205302de668e622f5272ca28017f5c6e861e4af0555ca0": openai_judge(server),
    }
    line = (
        '{"key": "KEY", "status": "ok", "correctness": true, "presence": false, "relevance": null, '
        '"faithfulness": null, "verbosity": null, "notes": "n", "model": "rules", "tokens": [3, 2], '
        '"detail": "", "at": "2026-01-01T00:00:00+00:00"}\n'
    )
    path = tmp_path / "verdicts.jsonl"
    path.write_text("".join(line.replace("KEY", key) for key in keys))
    for key, judge in keys.items():
        assert judge.key(one) == key
        (reply,) = judge_cases(judge, [one], VerdictCache(path))
        assert reply == Reply("ok", {"correctness": True, "presence": False}, "n", "rules", (3, 2))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"concurrency": 0}, "'concurrency' cannot be 0: .*greater than or equal to 1"),
        ({"limit": 0}, "'limit' cannot be 0"),
        ({"price": [3]}, "'price.1' cannot be"),
        ({"temperature": "warm"}, "'temperature' cannot be 'warm'"),
        (
            {"judge": "oracle"},
            "'judge' cannot be 'oracle': input should be 'offline', 'anthropic' or 'openai'",
        ),
        ({"judge": "local"}, "--judge openai --model NAME --base-url http://localhost:8000/v1"),
        ({"modle": "m"}, "no setting 'modle'. Did you mean 'model'?"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        JudgeConfig.build(settings)


def test_no_temperature_in_words():
    assert JudgeConfig.build({"temperature": "none"}).temperature is None
    assert JudgeConfig.build(None, {"temperature": "null"}).temperature is None
    assert JudgeConfig.build(None, {"temperature": "0"}).temperature == 0
