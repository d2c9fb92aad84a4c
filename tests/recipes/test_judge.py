"""Answers with reasons, asked or read, and judged; interrupted and gone on."""

import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageOps

from builders import tiny_codebook, tiny_lvlm
from craft.cli.arguments import expand
from craft.core.errors import CheckpointError, ConfigError, DataError
from craft.core.interrupt import Interrupted
from craft.evaluation.judge import Reply
from craft.evaluation.judge_answers import explain, read_rows
from craft.evaluation.judge_services import ServiceSettings
from craft.formats.prior import load_prior, save_prior
from craft.models.lvlm import LVLM
from craft.recipes import adapt, evaluate
from craft.recipes.judge import answers_in, answers_of, judge, make_judge
from craft.recipes.judge_estimate import estimate
from craft.training import RunFolder
from tiny_data import tiny_data

SHORT = {"max_new_tokens": 6, "batch_size": 4}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Class folders of real files: five classes, eight pictures each."""
    from cli.conftest import COLOURS, paint

    return paint(tmp_path_factory.mktemp("data") / "blobs", COLOURS)


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    """A finished adaptation to files on disk."""
    out = tmp_path_factory.mktemp("runs") / "blobs"
    return adapt(tiny_lvlm(), pictures, out, max_steps=2, batch_size=4, learning_rate=1e-2, device="cpu").out


def test_answers_are_asked_for_reasons_and_kept_with_their_pictures(run, tmp_path):
    answers = answers_of(tiny_lvlm(), run, out=tmp_path / "a", **SHORT)
    report = judge(answers)
    rows = read_rows(tmp_path / "a/answers.jsonl")
    assert len(rows) == len(report.samples) > 4
    assert all(row["prompt"].endswith("\nJustify your answer.") for row in rows)
    assert not any("Answer with the option only" in row["prompt"] for row in rows)
    assert all((tmp_path / "a" / row["image"]).is_file() for row in rows)
    asked = evaluate(tiny_lvlm(), run)
    assert {row["id"] for row in rows} == {row["id"] for row in asked.samples}
    assert {row["seen"] for row in rows} == {True, False}
    told = json.loads((tmp_path / "a/report-offline-rules.json").read_text())
    assert told["figures"]["presence"]["count"] == len(rows) and told["figures"]["overall"] is None
    assert "Correctness and Presence only" in told["settings"]["note"]


def test_zero_shot_answers_the_same_questions_with_the_base_tower(run, tmp_path):
    adapted = judge(answers_of(tiny_lvlm(), run, out=tmp_path / "a", **SHORT)).settings["answers"]
    zero = judge(answers_of(tiny_lvlm(), like=run, out=tmp_path / "z", **SHORT)).settings["answers"]
    assert adapted["samples"] == zero["samples"] and adapted["tower"] != zero["tower"]
    assert zero["zero_shot"] and not adapted["zero_shot"]


def test_an_interrupted_file_is_finished_to_the_same_bytes(tmp_path, monkeypatch):
    lvlm, samples = tiny_lvlm(), tiny_data(test=10).test
    explain(lvlm, samples, tmp_path / "whole", {"model": "x"}, **SHORT)
    whole = (tmp_path / "whole/answers.jsonl").read_bytes()
    calls = []
    answer = lvlm.answer

    def twice(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(*args, **kwargs)

    monkeypatch.setattr(type(lvlm), "answer", lambda self, *args, **kwargs: twice(*args, **kwargs))
    with pytest.raises(KeyboardInterrupt):
        explain(lvlm, samples, tmp_path / "torn", {"model": "x"}, **SHORT)
    part = tmp_path / "torn/answers.jsonl"
    assert len(part.read_text().splitlines()) == 8
    part.write_bytes(part.read_bytes()[:-30])  # and the machine stopped while it wrote
    explain(lvlm, samples, tmp_path / "torn", {"model": "x"}, **SHORT)
    assert part.read_bytes() == whole
    assert len(calls) == 5  # the second batch again, then the third
    explain(lvlm, samples, tmp_path / "torn", {"model": "x"}, **SHORT)
    assert len(calls) == 5
    with pytest.raises(ConfigError, match="max_new_tokens was 6 and is 7"):
        explain(lvlm, samples, tmp_path / "torn", {"model": "x"}, max_new_tokens=7, batch_size=4)


def test_answers_of_another_llm_or_projector_are_not_taken(run, tmp_path):
    """A baseline tuned anew, a backbone aligned anew: the name and the tower are what they were."""
    judge(answers_of(tiny_lvlm(), run, out=tmp_path, **SHORT))
    for part in ("projector", "llm"):
        other = tiny_lvlm()
        next(getattr(other.backbone, part).parameters()).data.neg_()
        with pytest.raises(ConfigError, match=f"{part} was"):
            judge(answers_of(other, run, out=tmp_path, **SHORT))


def test_answers_about_other_pictures_of_the_same_names_are_not_taken(pictures, tmp_path):
    data = tmp_path / "blobs"
    shutil.copytree(pictures, data)
    asked = {"data": data, "out": tmp_path / "a", **SHORT}
    judge(answers_of(tiny_lvlm(), **asked))
    judge(answers_of(tiny_lvlm(), **asked))
    for path in data.rglob("*.png"):
        with Image.open(path) as picture:
            inverted = ImageOps.invert(picture)
        inverted.save(path)
    with pytest.raises(ConfigError, match=r"other settings .*samples was"):
        judge(answers_of(tiny_lvlm(), **asked))


def test_answers_of_another_text_tokenizer_are_not_taken(run, tmp_path):
    judge(answers_of(tiny_lvlm(), run, out=tmp_path, **SHORT))
    other = tiny_lvlm()
    other.backbone.tokenizer.add_tokens(["flibber"])
    with pytest.raises(ConfigError, match=r"other settings .*words was"):
        judge(answers_of(other, run, out=tmp_path, **SHORT))


def test_a_stop_while_the_last_answers_are_written_asks_no_judge(run, tmp_path, monkeypatch):
    answer, calls = LVLM.answer, []

    def stopped(self, *given, **named):
        calls.append(signal.raise_signal(signal.SIGINT))
        return answer(self, *given, **named)

    monkeypatch.setattr(LVLM, "answer", stopped)
    monkeypatch.setattr("craft.recipes.judge.judge_cases", lambda *_: pytest.fail("judged all the same"))
    answers = answers_of(tiny_lvlm(), run, out=tmp_path, max_new_tokens=6, batch_size=64)
    with pytest.raises(Interrupted, match="the same command goes on"):
        judge(answers)
    monkeypatch.undo()
    assert len(judge(answers).samples) == len(read_rows(tmp_path / "answers.jsonl")) and len(calls) == 1


def test_overwrite_begins_anew_and_touches_nothing_else(run, tmp_path):
    judge(answers_of(tiny_lvlm(), run, out=tmp_path, **SHORT))
    (tmp_path / "mine.txt").write_text("keep")
    other = answers_of(tiny_lvlm("qwen2"), run, out=tmp_path, **SHORT)
    with pytest.raises(ConfigError, match="other settings"):
        judge(other)
    judge(other, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "keep"
    again = judge(answers_in(tmp_path), overwrite=True)  # answers that were given are not thrown away
    assert len(again.samples) == len(read_rows(tmp_path / "answers.jsonl"))


def test_what_no_judging_left_is_neither_replaced_nor_thrown_away(tmp_path):
    row = {"id": "a", "prompt": "?", "answer": "b", "prediction": "b"}
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.png").write_text("mine")
    (tmp_path / "report-mine.json").write_text("{}")
    (tmp_path / "answers.jsonl").write_text(json.dumps(row) + "\n")
    before = {place: place.read_bytes() for place in tmp_path.rglob("*") if place.is_file()}
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"holds answers\.jsonl, images that no judging left there"):
            judge(answers_in(tmp_path / "answers.jsonl", out=tmp_path), overwrite=overwrite)
    judged = judge(answers_in(tmp_path / "answers.jsonl")).settings["answers"]["answers"]
    with pytest.raises(ConfigError, match="other settings"):  # a judging's own folder as source and place
        again = tmp_path / "answers-judged"
        judge(answers_in(again / "answers.jsonl", out=again), overwrite=True)
    assert read_rows(again / "answers.jsonl") and judged == str(tmp_path / "answers.jsonl")
    assert all(place.read_bytes() == content for place, content in before.items())


def test_a_judge_without_a_key_is_refused_before_an_lvlm_is_asked(run, tmp_path, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    paid, answers = make_judge("anthropic"), answers_of(tiny_lvlm(), run, out=tmp_path / "a", **SHORT)
    with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY"):
        judge(answers, paid)
    assert not (tmp_path / "a").exists()
    judge(answers)
    with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY"):
        judge(answers, paid, overwrite=True)
    assert read_rows(tmp_path / "a/answers.jsonl")
    (tmp_path / "a/answers.json").unlink()
    with pytest.raises(CheckpointError, match=r"answers\.json"):
        judge(answers_in(tmp_path / "a"), overwrite=False)
    assert (tmp_path / "a/verdicts.jsonl").read_text().count("\n") == len(
        read_rows(tmp_path / "a/answers.jsonl")
    )


def test_a_mark_is_no_answer_and_a_number_is_one(tmp_path):
    row = {"id": "a", "prompt": "?", "prediction": "b", "answer": "b"}
    told = (
        {"correct": True},
        {"correct": False},
        {"correct": "c"},
        {"answer": 0},
        {"correct": "", "answer": "d"},
    )
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n".join(json.dumps({**row, **more}) for more in told))
    assert [case.truth for case, _ in answers_in(tmp_path / "a.jsonl").preview()] == ["b", "b", "c", "0", "d"]


def test_limit_draws_evenly_and_by_seed(run, tmp_path):
    def ids(name: str, **more) -> list[str]:
        answers = answers_of(tiny_lvlm(), run, out=tmp_path / name, limit=5, **SHORT, **more)
        return [case.id for case, _ in answers.preview()]

    assert ids("a") == ids("b") and len(ids("a")) == 5
    assert ids("a") != ids("c", seed=7)


def test_answers_of_an_evaluation_are_judged(run, pictures, tmp_path):
    path = tmp_path / "samples.jsonl"
    told = evaluate(tiny_lvlm(), run, out=path)
    report = judge(answers_in(path))
    assert len(report.samples) == len(told.samples)
    assert report.figures["correctness"]["mean"] == told.lenient
    seeing = make_judge("openai", ServiceSettings("m", "http://127.0.0.1:9"))
    with pytest.raises(ConfigError, match="has to see the pictures"):
        judge(answers_in(path, out=tmp_path / "no pictures"), seeing)
    found = answers_in(path, pictures, out=tmp_path / "pictures").collect()
    assert all(case.image is not None and case.image.is_file() for case in found)
    assert len(answers_in(path, limit=3).preview()) == 3


@pytest.mark.parametrize(
    "line, told",
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ('{"id": "a", "prompt": "?", "answer": "b"}', "prediction"),
        ('{"id": "a", "prompt": "?", "prediction": "b"}', "answer"),
        (r'{"id": "a", "prompt": "?", "answer": "b", "prediction": "\ud83d"}', "half a character"),
    ],
)
def test_bad_rows_are_named(line, told, tmp_path):
    good = '{"id": "a", "prompt": "?", "answer": "b", "prediction": "b \u2028 c"}\n'
    (tmp_path / "a.jsonl").write_text(good + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"a\.jsonl:2.*{told}"):
        answers_in(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="cannot read"):
        answers_in(tmp_path / "b.jsonl")


def test_estimate_before_and_after(run, tmp_path):
    answers = answers_of(tiny_lvlm(), run, out=tmp_path / "a", **SHORT)
    paid = make_judge("anthropic")  # the estimate needs no key
    before = estimate(answers, paid, 6)
    assert before.cases == before.asked == before.unanswered > 0
    assert before.most[1] == 1024 * before.cases and before.likely[1] < before.most[1]
    read, written = before.most
    assert before.dollars is not None and before.dollars[1] == pytest.approx((3 * read + 15 * written) / 1e6)
    assert not (tmp_path / "a").exists()
    rules = make_judge("offline")
    judge(answers, rules)
    assert estimate(answers, rules).asked == 0 and estimate(answers, paid).unanswered == 0
    unknown = make_judge("openai", ServiceSettings("m", price=None))
    assert estimate(answers, unknown).dollars is None
    priced = make_judge("openai", ServiceSettings("m", price=(1.0, 2.0)))
    assert estimate(answers, priced).dollars is not None


@pytest.mark.parametrize("said", ["b", ""])
def test_estimate_counts_equal_cases_once_as_they_are_judged(said, pictures, tmp_path):
    """Before their answers lie in the folder, and after."""
    one, other = sorted(pictures.rglob("*.png"))[:2]
    row = {"prompt": "?", "prediction": said, "answer": "b"}
    rows = [{**row, "id": str(number), "image": str(image)} for number, image in enumerate((one, one, other))]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answers, paid = answers_in(tmp_path / "a.jsonl"), make_judge("anthropic")
    before = estimate(answers, paid)
    assert (before.cases, before.asked, before.most[1]) == (3, 2, 2 * 1024)
    asked = []
    judge(
        answers, replace(make_judge("offline"), start=lambda: lambda case: asked.append(case) or Reply("ok"))
    )
    assert estimate(answers, paid).asked == len(asked) == 2


def test_estimate_of_answers_that_are_written_or_half_asked(run, tmp_path, monkeypatch):
    row = {"id": "a", "prompt": "What is it?", "answer": "coat", "prediction": ""}
    rows = [row, {**row, "id": "b", "prediction": "A coat, for its sleeves."}]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    paid = make_judge("anthropic")
    found = estimate(answers_in(tmp_path / "said.jsonl"), paid, 1000)
    assert (found.cases, found.asked, found.unanswered) == (2, 2, 0)  # to say nothing is an answer
    assert found.most[0] == found.likely[0]

    answers = answers_of(tiny_lvlm(), run, out=tmp_path / "a", **SHORT)
    answer, calls = LVLM.answer, []

    def once(self, *args, **kwargs):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return answer(self, *args, **kwargs)

    monkeypatch.setattr(LVLM, "answer", once)
    with pytest.raises(KeyboardInterrupt):
        answers.collect()
    found = estimate(answers, paid, 6)
    assert found.asked == found.cases > SHORT["batch_size"]
    assert found.unanswered == found.cases - SHORT["batch_size"]


def test_what_is_named_from_the_home_folder_is_written_there_too(tmp_path, monkeypatch):
    """It was read there, and what came of it written into a folder called "~"."""
    monkeypatch.setenv("HOME", str(tmp_path))
    row = {"id": "a", "prompt": "What is it?", "answer": "coat", "prediction": "A coat."}
    (tmp_path / "said.jsonl").write_text(json.dumps(row) + "\n")
    assert answers_in("~/said.jsonl").folder == tmp_path / "said-judged"
    assert answers_of(tiny_lvlm(), data="digits", out="~/judged").folder == tmp_path / "judged"
    assert RunFolder("~/runs/digits").encoder == tmp_path / "runs" / "digits" / "encoder"
    assert expand(["eval", "m", "--out=~/x"]) == ["eval", "m", f"--out={tmp_path / 'x'}"]
    save_prior(tmp_path / "prior", torch.arange(32), tiny_codebook())
    assert torch.equal(load_prior("~/prior", tiny_codebook()), torch.arange(32))


def test_judges_by_name():
    with pytest.raises(ConfigError, match="needs --model"):
        make_judge("local")
    assert make_judge("local", ServiceSettings("some/model")).name == "some/model"
    assert make_judge().dimensions == ("correctness", "presence")
    with pytest.raises(ConfigError, match="reads no prompt"):
        make_judge("offline", ServiceSettings(prompt="rubric.md"))
