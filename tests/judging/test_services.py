"""The real SDKs against a real server on loopback that limits, breaks, refuses and stalls."""

import logging
import warnings

import numpy as np
import pytest
from PIL import Image

from craft.core.errors import ConfigError
from craft.core.service import PATIENCE, error_line
from craft.judging.cases import DIMENSIONS, Case, Judge
from craft.judging.config import JudgeConfig
from craft.judging.report import JudgeReport
from craft.judging.run import VerdictCache, judge_cases
from craft.judging.services import anthropic_judge, openai_judge
from judging import judge_server
from judging.judge_server import KEY, MODEL, serving, verdict_on

PROTOCOLS = ("anthropic", "openai")
each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    """The key, and nothing else that an SDK reads."""
    for name in ("ANTHROPIC_BASE_URL", "OPENAI_BASE_URL", "ANTHROPIC_AUTH_TOKEN", "OPENAI_ORG_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 28, 3), dtype=np.uint8)).save(path)
    return path


def cases(picture, count: int = 6) -> list[Case]:
    return [
        Case(
            f"s{n}",
            "What is it?\nJustify your answer.",
            ("bag", "coat"),
            "coat",
            f"coat, {n} buttons",
            picture,
        )
        for n in range(count)
    ]


def judge_at(server, protocol: str, **settings) -> Judge:
    settings = {"model": MODEL, "timeout": 30.0, "concurrency": 3, **settings}
    if protocol == "anthropic":
        return anthropic_judge(JudgeConfig(base_url=server.url, **settings))
    return openai_judge(JudgeConfig(base_url=f"{server.url}/v1", **settings))


@each_protocol
def test_secrets_in_a_url_are_not_stored(protocol):
    make = {"anthropic": anthropic_judge, "openai": openai_judge}[protocol]
    made = make(JudgeConfig(model="m", base_url="https://me:secret@host.org:8000/v1?key=secret"))
    assert made.identity["url"] == "https://host.org:8000/v1"


@pytest.mark.parametrize(
    "usage", [None, {"prompt_tokens": None, "completion_tokens": 10}, {"total_tokens": 9}]
)
def test_a_server_that_does_not_count_tokens(usage, picture, tmp_path, monkeypatch):
    reply = judge_server._openai.reply
    monkeypatch.setattr(
        judge_server._openai, "reply", staticmethod(lambda *said: {**reply(*said), "usage": usage})
    )
    batch = cases(picture, 2)
    with serving() as server:
        replies = judge_cases(judge_at(server, "openai"), batch, VerdictCache(tmp_path / "v.jsonl"))
    assert [reply.status for reply in replies] == ["ok", "ok"]
    counted = 2 * (usage or {}).get("completion_tokens", 0)
    assert JudgeReport.of(batch, replies).tokens == (0, counted)


@each_protocol
def test_every_case_gets_its_own_verdict(protocol, picture, tmp_path):
    batch = cases(picture)
    with serving() as server:
        replies = judge_cases(judge_at(server, protocol), batch, VerdictCache(tmp_path / "v.jsonl"))
    assert server.complaints == []
    for case, reply in zip(batch, replies, strict=True):
        wanted = verdict_on(case.response)
        assert reply.status == "ok" and dict(reply.scores) == {name: wanted[name] for name in DIMENSIONS}
        assert reply.notes == wanted["notes"] and reply.model == f"{MODEL}-20250929"
        assert reply.tokens == (100, 10)
    assert server.judged.total() == len(batch) and server.most_busy <= 3
    assert {body["temperature"] for body in server.bodies} == {0.6}
    assert {body["max_tokens"] for body in server.bodies} == {1024}


@each_protocol
def test_a_judge_that_is_not_there_stops_at_once(protocol, picture, tmp_path):
    with serving() as server:
        pass
    judge = judge_at(server, protocol, retries=0)
    with pytest.raises(
        ConfigError, match=rf"judge's service at {server.url}\S* cannot be reached .*--base-url"
    ):
        judge_cases(judge, cases(picture, 2), VerdictCache(tmp_path / "v.jsonl"))


@each_protocol
def test_an_address_that_is_none(protocol):
    make = {"anthropic": anthropic_judge, "openai": openai_judge}[protocol]
    with pytest.raises(ConfigError, match=r"--base-url http://localhost:80oo/v1 .*Invalid port"):
        make(JudgeConfig(model="m", base_url="http://localhost:80oo/v1")).start()


@each_protocol
def test_another_rubric_is_sent_to_the_service(protocol, picture, tmp_path):
    rubric = tmp_path / "mine.md"
    rubric.write_text(
        "## System\nA careful judge, and stern.\n## User\nMine: <response>\n{response}\n</response>\n",
        "utf-8",
    )
    (one,), cache = cases(picture, 1), VerdictCache(tmp_path / "v.jsonl")
    with serving() as server:
        usual, stern = judge_at(server, protocol), judge_at(server, protocol, prompt=str(rubric))
        judge_cases(usual, [one], cache)
        judge_cases(stern, [one], cache)
        judge_cases(stern, [one], cache)
    assert (
        server.complaints == [] and len(server.bodies) == 2
    )  # each rubric has its own verdicts, and they are stored
    body = server.bodies[1]
    system = body["system"] if protocol == "anthropic" else body["messages"][0]["content"]
    text = body["messages"][-1]["content"][-1]["text"]
    assert (
        system == "A careful judge, and stern." and text == f"Mine: <response>\n{one.response}\n</response>"
    )
    assert stern.identity["prompt"]["version"] == "mine.md"


@each_protocol
def test_no_temperature_is_sent_where_none_is_wanted(protocol, picture, tmp_path):
    with serving() as server:
        judge_cases(
            judge_at(server, protocol, temperature=None), cases(picture, 1), VerdictCache(tmp_path / "v")
        )
    assert "temperature" not in server.bodies[0]


@each_protocol
@pytest.mark.parametrize("fault", ["brief rate limit", "overloaded", "error", "drop", "cut body"])
def test_the_sdk_tries_again(protocol, fault, picture, tmp_path):
    with serving(lambda response, attempt: fault if attempt == 1 else None) as server:
        replies = judge_cases(judge_at(server, protocol), cases(picture, 3), VerdictCache(tmp_path / "v"))
    assert [reply.status for reply in replies] == ["ok"] * 3
    assert set(server.attempts.values()) == {2} and set(server.judged.values()) == {1}


@each_protocol
def test_a_rate_limit_is_waited_for(protocol, picture, tmp_path):
    with serving(lambda response, attempt: "rate limit" if attempt == 1 else None) as server:
        judge_cases(judge_at(server, protocol), cases(picture, 1), VerdictCache(tmp_path / "v"))
    (_, first), (_, second) = server.at
    assert second - first >= 0.95  # retry-after: 1


@each_protocol
@pytest.mark.parametrize(
    "fault, status",
    [
        ("refusal", "refused"),
        ("cut reply", "truncated"),
        ("prose", "invalid"),
        ("wrong grade", "invalid"),
        ("no json", "failed"),
        ("slow", "failed"),
        (400, "failed"),
    ],
)
def test_what_is_no_verdict_is_a_status_and_never_a_zero(protocol, fault, status, picture, tmp_path):
    batch = cases(picture, 3)
    bad = batch[1].response
    path = tmp_path / "v.jsonl"
    with serving(lambda response, attempt: fault if response == bad else None) as server:
        judge = judge_at(server, protocol, timeout=0.3 if fault == "slow" else 30.0, retries=0)
        replies = judge_cases(judge, batch, VerdictCache(path))
        assert [reply.status for reply in replies] == ["ok", status, "ok"]
        assert replies[1].scores == {} and (replies[1].detail or status == "refused")
        # The same again: only the pending one is asked, and now all is well.
        server.fault = lambda response, attempt: None
        again = judge_cases(judge, batch, VerdictCache(path))
    last = "refused" if status == "refused" else "ok"
    assert [reply.status for reply in again] == ["ok", last, "ok"]
    assert server.attempts[batch[0].response] == server.attempts[batch[2].response] == 1
    assert server.attempts[bad] == (1 if status == "refused" else 2)


@each_protocol
def test_a_fence_is_taken_off(protocol, picture, tmp_path):
    with serving(lambda response, attempt: "fenced") as server:
        (reply,) = judge_cases(judge_at(server, protocol), cases(picture, 1), VerdictCache(tmp_path / "v"))
    assert reply.status == "ok"


@each_protocol
@pytest.mark.parametrize("trouble", ["key", "model"])
def test_what_no_case_can_pass_stops_at_once(protocol, trouble, picture, tmp_path, monkeypatch, caplog):
    if trouble == "key":
        for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
            monkeypatch.setenv(name, "sk-wrong-0987654321")
    model = "retired-1" if trouble == "model" else MODEL
    with caplog.at_level(logging.DEBUG), serving() as server:
        judge = judge_at(server, protocol, model=model, concurrency=1)
        with pytest.raises(ConfigError, match="rejects every call") as caught:
            judge_cases(judge, cases(picture, 20), VerdictCache(tmp_path / "v"))
    assert "sk-wrong" not in str(caught.value)
    assert len(server.at) == 0 and not (tmp_path / "v").exists()


@each_protocol
def test_a_service_out_of_order_is_not_asked_a_thousand_times(protocol, picture, tmp_path):
    with serving(lambda response, attempt: 400) as server:
        judge = judge_at(server, protocol, concurrency=1)
        with pytest.raises(
            ConfigError, match=rf"no verdict in {PATIENCE} replies in a row \({PATIENCE} failed\)"
        ):
            judge_cases(judge, cases(picture, 40), VerdictCache(tmp_path / "v"))
    assert len(server.at) <= PATIENCE + 2


@each_protocol
@pytest.mark.parametrize(
    "fault, status, way_out",
    [
        ("prose", "invalid", "--prompt"),
        ("wrong grade", "invalid", "--model"),
        ("cut reply", "truncated", "--max-tokens"),
    ],
)
def test_replies_that_are_no_verdict_are_not_paid_for_all_cases(
    protocol, fault, status, way_out, picture, tmp_path
):
    """The same command asks new cases first, so cases that never succeed do not stop the others."""
    batch, path = cases(picture, 30), tmp_path / "v.jsonl"
    good = {one.response for one in batch[12:]}
    with serving(lambda response, attempt: fault) as server:
        judge = judge_at(server, protocol, concurrency=1)
        with pytest.raises(ConfigError, match=rf"{PATIENCE} {status}\).*{way_out}.*same command") as caught:
            judge_cases(judge, batch, VerdictCache(path))
        assert PATIENCE <= len(server.at) <= PATIENCE + 2 and "it said" in str(caught.value)
        server.fault = lambda response, attempt: None if response in good else fault
        replies = judge_cases(judge, batch, VerdictCache(path))
    assert [reply.status for reply in replies] == [status] * 12 + ["ok"] * 18


def test_eight_in_a_row_count_in_the_middle_too(picture, tmp_path):
    batch = cases(picture, 40)
    late = {one.response for one in batch[20:]}
    with (
        serving(lambda response, attempt: "prose" if response in late else None) as server,
        pytest.raises(ConfigError, match="8 invalid"),
    ):
        judge_cases(judge_at(server, "openai", concurrency=1), batch, VerdictCache(tmp_path / "v"))
    assert len(server.at) <= 20 + PATIENCE + 2


ERROR_BODIES = [
    {"error": {"message": "Insufficient credits", "code": 402}},
    {"error": "Insufficient credits"},
    {"type": "error", "error": {"type": "billing_error", "message": "Insufficient credits"}},
    {"object": "error", "message": "Insufficient credits", "code": 402},
    {"detail": "Insufficient credits"},
    {"choices": [], "error": {"message": "Insufficient credits"}},
    {"choices": [{"error": {"message": "Insufficient credits"}, "message": None, "finish_reason": "error"}]},
    {"status": "Insufficient credits"},
]


@each_protocol
@pytest.mark.parametrize("body", ERROR_BODIES, ids=repr)
def test_an_error_with_status_200_keeps_the_servers_words(protocol, body, picture, tmp_path):
    batch = cases(picture, 2)
    with serving(lambda response, attempt: body if response == batch[0].response else None) as server:
        replies = judge_cases(judge_at(server, protocol), batch, VerdictCache(tmp_path / "v"))
    assert [reply.status for reply in replies] == ["failed", "ok"]
    assert "HTTP status 200" in replies[0].detail and "Insufficient credits" in replies[0].detail


@each_protocol
def test_every_reply_that_was_paid_for_is_counted(protocol, picture, tmp_path):
    """A repeat adds to what the first run paid: 3 + 1 calls of 100 and 10 tokens."""
    batch, path = cases(picture, 3), tmp_path / "v.jsonl"
    bad = batch[1].response
    with serving(lambda response, attempt: "prose" if response == bad and attempt == 1 else None) as server:
        judge = judge_at(server, protocol)
        for total in ((300, 30), (400, 40), (400, 40)):
            cache = VerdictCache(path)
            judge_cases(judge, [*batch, batch[0]], cache)
            keys = [judge.key(one) for one in [*batch, batch[0]]]
            assert cache.tokens(keys) == VerdictCache(path).tokens(keys) == total


@each_protocol
def test_the_papers_rubric_is_sent_by_name(protocol, picture, tmp_path):
    with serving() as server:
        judge = judge_at(server, protocol, prompt="paper")
        (reply,) = judge_cases(judge, cases(picture, 1), VerdictCache(tmp_path / "v"))
    (body,) = server.bodies
    system = body["system"] if protocol == "anthropic" else body["messages"][0]["content"]
    assert reply.status == "ok" and system.startswith("You are a careful, unbiased multimodal judge")
    assert judge.identity["prompt"]["version"] == "paper"


@each_protocol
def test_the_key_is_in_no_log_and_no_file(protocol, picture, tmp_path, caplog, capfd):
    """Logging at its loudest, with failures of every kind."""
    faults = ["error", "cut body", "no json", 400, "refusal", None]
    path = tmp_path / "v.jsonl"
    with (
        caplog.at_level(logging.DEBUG),
        serving(lambda response, _: faults[int(response.split()[1])]) as server,
    ):
        replies = judge_cases(judge_at(server, protocol, retries=1), cases(picture), VerdictCache(path))
    assert len({reply.status for reply in replies}) >= 3
    said = "".join(record.getMessage() + str(record.args) + str(record.exc_text) for record in caplog.records)
    assert len(caplog.records) > 5
    for text in (said, path.read_text(), *capfd.readouterr()):
        assert KEY not in text


def test_no_part_of_a_key_is_told_where_a_long_error_is_cut():
    for before in range(10, 40):
        said = error_line(ValueError("x" * before + KEY + "y" * 40), KEY, most=40)
        assert len(said) == 40 and KEY[:4] not in said


def test_keys_are_asked_for_in_words(picture, tmp_path, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY")
    cache = VerdictCache(tmp_path / "v")
    with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY"):
        judge_cases(anthropic_judge(JudgeConfig()), cases(picture, 1), cache)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        judge_cases(openai_judge(JudgeConfig(model="gpt")), cases(picture, 1), cache)
    with pytest.raises(ConfigError, match="--model"):
        openai_judge(JudgeConfig())


def test_a_model_about_to_retire_is_told_once(picture, tmp_path, capfd):
    """The SDK warns on every call; the paper's judge is such a model."""
    with serving() as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        judge = judge_at(server, "anthropic", model=None)
        replies = judge_cases(judge, cases(picture, 4), VerdictCache(tmp_path / "v"))
    assert judge.name == "claude-sonnet-4-5" and {reply.model for reply in replies} == {
        "claude-sonnet-4-5-20250929"
    }
    assert capfd.readouterr().err.count("is deprecated") <= 1


def test_verdicts_are_stored_by_judge_and_content(picture, tmp_path):
    one, other = cases(picture, 2)
    judge = anthropic_judge(JudgeConfig(model=MODEL))
    assert judge.key(one) != judge.key(other)
    renamed = Case("another id", one.task, one.options, one.truth, one.response, picture)
    assert judge.key(renamed) == judge.key(one)
    for changed in (JudgeConfig(model="judge-2"), JudgeConfig(model=MODEL, temperature=0.0)):
        assert anthropic_judge(changed).key(one) != judge.key(one)
    assert openai_judge(JudgeConfig(model=MODEL)).key(one) != judge.key(one)
    assert anthropic_judge(JudgeConfig(model=MODEL, retries=9, timeout=1.0)).key(one) == judge.key(one)
