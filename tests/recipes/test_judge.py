"""Answers with reasons, asked or read, and judged; interrupted and gone on."""

import json
import shutil
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image, ImageOps

from builders import tiny_codebook, tiny_lvlm
from craft.cli.flags import expand
from craft.core.errors import CheckpointError, ConfigError, DataError
from craft.core.interrupt import Interrupted
from craft.formats.prior import load_prior, save_prior
from craft.judging.answers import explain, read_rows
from craft.judging.cases import Reply
from craft.judging.config import JudgeConfig
from craft.judging.judge import make_judge
from craft.models.lvlm import LVLM
from craft.recipes import adapt, evaluate
from craft.recipes.judge import answers_of, estimate, judge, judge_settings
from craft.training.run_folder import RunFolder
from tiny_data import tiny_data

SHORT = {"max_new_tokens": 6, "batch_size": 4}


def answers_in(run, backbone=None, data=None, **settings):
    """What `judge` with these arguments would judge."""
    return answers_of(judge_settings(run, None, backbone, data, None, settings), run, backbone)


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
    report = judge(run, backbone=tiny_lvlm(), out=tmp_path / "a", **SHORT)
    assert report.folder == tmp_path / "a" and report.judge == "offline rules"
    rows = read_rows(tmp_path / "a/answers.jsonl")
    assert len(rows) == len(report.samples) > 4
    assert all(row["prompt"].endswith("\nJustify your answer.") for row in rows)
    assert not any("Answer with the option only" in row["prompt"] for row in rows)
    assert all((tmp_path / "a" / row["image"]).is_file() for row in rows)
    asked = evaluate(tiny_lvlm(), run)
    assert {row["id"] for row in rows} == {row["id"] for row in asked.samples}
    assert {row["seen"] for row in rows} == {True, False}
    written = json.loads((tmp_path / "a/report-offline-rules.json").read_text())
    assert written["figures"]["presence"]["count"] == len(rows) and written["figures"]["overall"] is None
    assert "Correctness and Presence only" in written["settings"]["note"]


def test_zero_shot_answers_the_same_questions_with_the_base_tower(run, tmp_path):
    adapted = judge(run, backbone=tiny_lvlm(), out=tmp_path / "a", **SHORT).settings["answers"]
    zero = judge(run, backbone=tiny_lvlm(), zero_shot=True, out=tmp_path / "z", **SHORT).settings["answers"]
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
    judge(run, backbone=tiny_lvlm(), out=tmp_path, **SHORT)
    for part in ("projector", "llm"):
        other = tiny_lvlm()
        next(getattr(other.backbone, part).parameters()).data.neg_()
        with pytest.raises(ConfigError, match=f"{part} was"):
            judge(run, backbone=other, out=tmp_path, **SHORT)


def test_answers_about_other_pictures_of_the_same_names_are_not_taken(pictures, tmp_path):
    data = tmp_path / "blobs"
    shutil.copytree(pictures, data)
    settings = {"data": data, "out": tmp_path / "a", **SHORT}
    judge(tiny_lvlm(), **settings)
    judge(tiny_lvlm(), **settings)
    for path in data.rglob("*.png"):
        with Image.open(path) as picture:
            inverted = ImageOps.invert(picture)
        inverted.save(path)
    with pytest.raises(ConfigError, match=r"other settings .*samples was"):
        judge(tiny_lvlm(), **settings)


def test_answers_of_another_text_tokenizer_are_not_taken(run, tmp_path):
    judge(run, backbone=tiny_lvlm(), out=tmp_path, **SHORT)
    other = tiny_lvlm()
    other.backbone.tokenizer.add_tokens(["flibber"])
    with pytest.raises(ConfigError, match=r"other settings .*words was"):
        judge(run, backbone=other, out=tmp_path, **SHORT)


def test_a_stop_while_the_last_answers_are_written_asks_no_judge(run, tmp_path, monkeypatch):
    answer, calls = LVLM.answer, []

    def stopped(self, *given, **named):
        calls.append(signal.raise_signal(signal.SIGINT))
        return answer(self, *given, **named)

    monkeypatch.setattr(LVLM, "answer", stopped)
    monkeypatch.setattr("craft.judging.judge.judge_cases", lambda *_: pytest.fail("judged all the same"))
    call = partial(judge, run, backbone=tiny_lvlm(), out=tmp_path, max_new_tokens=6, batch_size=64)
    with pytest.raises(Interrupted, match="the same command continues"):
        call()
    monkeypatch.undo()
    assert len(call().samples) == len(read_rows(tmp_path / "answers.jsonl")) and len(calls) == 1


def test_overwrite_begins_anew_and_touches_nothing_else(run, tmp_path):
    judge(run, backbone=tiny_lvlm(), out=tmp_path, **SHORT)
    (tmp_path / "mine.txt").write_text("keep")
    other = partial(judge, run, backbone=tiny_lvlm("qwen2"), out=tmp_path, **SHORT)
    with pytest.raises(ConfigError, match="other settings"):
        other()
    other(overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "keep"
    again = judge(tmp_path, overwrite=True)  # answers that it did not make are not discarded
    assert len(again.samples) == len(read_rows(tmp_path / "answers.jsonl"))


def test_files_of_others_are_neither_replaced_nor_discarded(tmp_path):
    row = {"id": "a", "prompt": "?", "answer": "b", "prediction": "b"}
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.png").write_text("mine")
    (tmp_path / "report-mine.json").write_text("{}")
    (tmp_path / "answers.jsonl").write_text(json.dumps(row) + "\n")
    before = {place: place.read_bytes() for place in tmp_path.rglob("*") if place.is_file()}
    for overwrite in (False, True):
        with pytest.raises(
            ConfigError, match=r"holds answers\.jsonl, images that `craft judge` did not write"
        ):
            judge(tmp_path / "answers.jsonl", out=tmp_path, overwrite=overwrite)
    judged = judge(tmp_path / "answers.jsonl").settings["answers"]["answers"]
    with pytest.raises(
        ConfigError, match="other settings"
    ):  # the folder of a judging as source and destination
        again = tmp_path / "answers-judged"
        judge(again / "answers.jsonl", out=again, overwrite=True)
    assert read_rows(again / "answers.jsonl") and judged == str(tmp_path / "answers.jsonl")
    assert all(place.read_bytes() == content for place, content in before.items())


def test_a_judge_without_a_key_is_refused_before_an_lvlm_is_asked(run, tmp_path, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    call = partial(judge, run, backbone=tiny_lvlm(), out=tmp_path / "a", **SHORT)
    with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY"):
        call(judge="anthropic")
    assert not (tmp_path / "a").exists()
    call()
    with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY"):
        call(judge="anthropic", overwrite=True)
    assert read_rows(tmp_path / "a/answers.jsonl")
    (tmp_path / "a/answers.json").unlink()
    with pytest.raises(CheckpointError, match=r"answers\.json"):
        judge(tmp_path / "a")
    assert (tmp_path / "a/verdicts.jsonl").read_text().count("\n") == len(
        read_rows(tmp_path / "a/answers.jsonl")
    )


def test_a_mark_is_no_answer_and_a_number_is_one(tmp_path):
    row = {"id": "a", "prompt": "?", "prediction": "b", "answer": "b"}
    marks = (
        {"correct": True},
        {"correct": False},
        {"correct": "c"},
        {"answer": 0},
        {"correct": "", "answer": "d"},
    )
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n".join(json.dumps({**row, **more}) for more in marks))
    assert [case.truth for case, _ in answers_in(tmp_path / "a.jsonl").preview()] == ["b", "b", "c", "0", "d"]


def test_limit_draws_evenly_and_by_seed(run, tmp_path):
    def ids(name: str, **more) -> list[str]:
        answers = answers_in(run, tiny_lvlm(), out=tmp_path / name, limit=5, **SHORT, **more)
        return [case.id for case, _ in answers.preview()]

    assert ids("a") == ids("b") and len(ids("a")) == 5
    assert ids("a") != ids("c", seed=7)


def test_answers_of_an_evaluation_are_judged(run, pictures, tmp_path):
    path = tmp_path / "samples.jsonl"
    evaluated = evaluate(tiny_lvlm(), run, out=path)
    report = judge(path)
    assert len(report.samples) == len(evaluated.samples)
    assert report.figures["correctness"]["mean"] == evaluated.lenient
    with pytest.raises(ConfigError, match="has to see the images"):
        judge(path, "openai", model="m", base_url="http://127.0.0.1:9", out=tmp_path / "no images")
    cases = answers_in(path, data=pictures, out=tmp_path / "pictures").collect()
    assert all(case.image is not None and case.image.is_file() for case in cases)
    assert len(answers_in(path, limit=3).preview()) == 3


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ('{"id": "a", "prompt": "?", "answer": "b"}', "prediction"),
        ('{"id": "a", "prompt": "?", "prediction": "b"}', "answer"),
        (r'{"id": "a", "prompt": "?", "answer": "b", "prediction": "\ud83d"}', "half a character"),
    ],
)
def test_bad_rows_are_named(line, message, tmp_path):
    good = '{"id": "a", "prompt": "?", "answer": "b", "prediction": "b \u2028 c"}\n'
    (tmp_path / "a.jsonl").write_text(good + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"a\.jsonl:2.*{message}"):
        answers_in(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="cannot read"):
        answers_in(tmp_path / "b.jsonl")


def test_estimate_before_and_after(run, tmp_path):
    same = {"backbone": tiny_lvlm(), "out": tmp_path / "a", **SHORT}
    before = estimate(run, "anthropic", **same)  # needs no key
    assert before.cases == before.pending == before.unanswered > 0
    assert before.most[1] == 1024 * before.cases and before.likely[1] < before.most[1]
    read, written = before.most
    assert before.dollars is not None and before.dollars[1] == pytest.approx((3 * read + 15 * written) / 1e6)
    assert not (tmp_path / "a").exists()
    judge(run, **same)
    assert estimate(run, **same).pending == 0 and estimate(run, "anthropic", **same).unanswered == 0
    assert estimate(run, "openai", model="m", **same).dollars is None
    assert estimate(run, "openai", model="m", price=(1.0, 2.0), **same).dollars is not None


@pytest.mark.parametrize("said", ["b", ""])
def test_estimate_counts_equal_cases_once_as_they_are_judged(said, pictures, tmp_path):
    """Before their answers lie in the folder, and after."""
    one, other = sorted(pictures.rglob("*.png"))[:2]
    row = {"prompt": "?", "prediction": said, "answer": "b"}
    rows = [{**row, "id": str(number), "image": str(image)} for number, image in enumerate((one, one, other))]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before = estimate(tmp_path / "a.jsonl", "anthropic")
    assert (before.cases, before.pending, before.most[1]) == (3, 2, 2 * 1024)
    asked = []
    counting = replace(
        make_judge(JudgeConfig()), start=lambda: lambda case: asked.append(case) or Reply("ok")
    )
    judge(tmp_path / "a.jsonl", counting)
    assert estimate(tmp_path / "a.jsonl", "anthropic").pending == len(asked) == 2


def test_estimate_of_answers_that_are_written_or_half_asked(run, tmp_path, monkeypatch):
    row = {"id": "a", "prompt": "What is it?", "answer": "coat", "prediction": ""}
    rows = [row, {**row, "id": "b", "prediction": "A coat, for its sleeves."}]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    written = estimate(tmp_path / "said.jsonl", "anthropic", max_new_tokens=1000)
    assert (written.cases, written.pending, written.unanswered) == (2, 2, 0)  # an empty answer is an answer
    assert written.most[0] == written.likely[0]

    same = {"backbone": tiny_lvlm(), "out": tmp_path / "a", **SHORT}
    answer, calls = LVLM.answer, []

    def once(self, *args, **kwargs):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return answer(self, *args, **kwargs)

    monkeypatch.setattr(LVLM, "answer", once)
    with pytest.raises(KeyboardInterrupt):
        judge(run, **same)
    half = estimate(run, "anthropic", **same)
    assert half.pending == half.cases > SHORT["batch_size"]
    assert half.unanswered == half.cases - SHORT["batch_size"]


def test_what_is_named_from_the_home_folder_is_written_there_too(tmp_path, monkeypatch):
    """It was read there, and what came of it written into a folder called "~"."""
    monkeypatch.setenv("HOME", str(tmp_path))
    row = {"id": "a", "prompt": "What is it?", "answer": "coat", "prediction": "A coat."}
    (tmp_path / "said.jsonl").write_text(json.dumps(row) + "\n")
    assert answers_in("~/said.jsonl").folder == tmp_path / "said-judged"
    assert answers_in(tiny_lvlm(), data="digits", out="~/judged").folder == tmp_path / "judged"
    assert RunFolder("~/runs/digits").encoder == tmp_path / "runs" / "digits" / "encoder"
    assert expand(["eval", "m", "--out=~/x"]) == ["eval", "m", f"--out={tmp_path / 'x'}"]
    save_prior(tmp_path / "prior", torch.arange(32), tiny_codebook())
    assert torch.equal(load_prior("~/prior", tiny_codebook()), torch.arange(32))


def test_settings_come_from_file_dict_and_arguments(tmp_path, pictures):
    (tmp_path / "judge.yaml").write_text(
        "judge: openai\nmodel: m\nprice: [3, 15]\ntemperature: none\nlimit: 4\n"
    )
    config = judge_settings(None, None, None, pictures, tmp_path / "judge.yaml", {"limit": 3})
    assert (config.judge, config.limit, config.price, config.temperature) == ("openai", 3, (3.0, 15.0), None)
    assert config.data == str(pictures) and config.max_tokens == 1024
    with pytest.raises(ConfigError, match=r"no setting 'modle'\. Did you mean 'model'\?"):
        judge(tiny_lvlm(), data=pictures, modle="m")
    with pytest.raises(ConfigError, match="Name what to judge"):
        judge(config={"limit": 3})


def test_judges_by_name():
    with pytest.raises(ConfigError, match="--base-url http://localhost:8000/v1"):
        make_judge(JudgeConfig(judge="openai"))
    assert make_judge(JudgeConfig(judge="openai", model="some/model")).name == "some/model"
    assert make_judge(JudgeConfig()).dimensions == ("correctness", "presence")
    with pytest.raises(ConfigError, match="reads no prompt"):
        make_judge(JudgeConfig(prompt="rubric.md"))
