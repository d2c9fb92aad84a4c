"""`craft judge` in words; and a thousand calls of which one in ten fails, stopped twice: none is lost."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from judging.judge_server import KEY, MODEL, serving, verdict_on

SHORT = ("--max-new-tokens", "6", "--batch-size", "4", "--device", "cpu")


def test_a_run_is_judged(craft, family, encoder, tmp_path):
    run, _ = encoder
    place = tmp_path / "judged"
    dry = craft("judge", run, "--backbone", family / "qwen2", "--out", place, "--dry-run", *SHORT)
    assert dry.status == 0 and "no model was asked" in dry.out and not place.exists(), dry.err
    said = craft("judge", run, "--backbone", family / "qwen2", "--out", place, *SHORT)
    assert said.status == 0, said.err
    text = " ".join(said.out.split())  # titles are wrapped, sooner or later by the length of the path
    assert "judged by offline rules" in text and "Correctness and Presence only" in text
    again = craft("judge", run, "--backbone", family / "qwen2", "--out", place, "--json", *SHORT)
    assert again.json["statuses"]["ok"] == len(again.json["samples"]) > 0
    assert again.json["figures"]["overall"] is None
    folder = craft("judge", place, "--json")
    assert folder.json["figures"] == again.json["figures"]


def test_zero_shot_by_flag_and_by_name(craft, family, encoder, pictures, tmp_path):
    run, _ = encoder
    one = craft("judge", run, "--zero-shot", "--out", tmp_path / "a", "--json", "--limit", "4", *SHORT)
    assert one.json["settings"]["answers"]["zero_shot"] is True
    words = ("--data", pictures, "--out", tmp_path / "b", "--json", "--limit", "4", *SHORT)
    two = craft("judge", family / "llama", *words)
    assert two.status == 0 and len(two.json["samples"]) == 4, two.err


def test_what_it_would_cost(craft, encoder, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    run, _ = encoder
    said = craft("judge", run, "--judge", "anthropic", "--dry-run", *SHORT)
    assert said.status == 0 and "claude-sonnet-4-5" in said.out and "dollars, at most" in said.out, said.err
    told = craft("judge", run, "--judge", "anthropic", "--dry-run", "--json", *SHORT).json
    assert told["dollars"][0] <= told["dollars"][1] and told["asked"] == told["cases"]
    other = craft("judge", run, "--judge", "openai", "--model", "m", "--dry-run", *SHORT)
    assert "give --price" in other.out


def test_a_config_names_the_price_of_both_directions(craft, encoder, tmp_path):
    run, _ = encoder
    (tmp_path / "judge.yaml").write_text("judge: openai\nmodel: m\nprice: [3, 15]\nlimit: 4\n")
    words = ("judge", run, "--config", tmp_path / "judge.yaml", "--dry-run", "--json", *SHORT)
    listed = craft(*words)
    assert listed.status == 0, listed.err
    judge = ("--judge", "openai", "--model", "m", "--price", "3", "15", "--limit", "4")
    flags = craft("judge", run, *judge, "--dry-run", "--json", *SHORT)
    assert listed.json["dollars"] == flags.json["dollars"] is not None


def test_mistakes(craft, encoder, tmp_path, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    run, _ = encoder
    out = ("--out", tmp_path / "a", "--limit", "2", *SHORT)
    assert "ANTHROPIC_API_KEY" in craft("judge", run, "--judge", "anthropic", *out).complaint
    assert "--model" in craft("judge", run, "--judge", "openai", *out).complaint
    assert "no model 'nowhere'" in craft("judge", "nowhere", "--data", "apparel").complaint
    assert "cannot read" in craft("judge", tmp_path / "none.jsonl").complaint
    assert "temperature" in craft("judge", run, "--temperature", "warm").complaint


def answers_file(folder, count: int):
    """Answers as another program might have written them, each with the same picture."""
    Image.new("RGB", (28, 28), (180, 90, 20)).save(folder / "picture.png")
    rows = [
        {
            "id": f"s{n}",
            "prompt": "What is it?\nA. bag\nB. coat\nJustify your answer.",
            "choices": ["bag", "coat"],
            "correct": "coat",
            "prediction": f"coat, number {n}",
            "image": "picture.png",
        }
        for n in range(count)
    ]
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path, rows


def test_a_report_says_the_rubric_and_all_that_was_paid(craft, tmp_path, monkeypatch):
    """Five cases, of which one has to be asked twice, at 100 and 10 tokens."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    path, rows = answers_file(tmp_path, 5)
    bad = rows[2]["prediction"]
    with serving(lambda response, attempt: "prose" if response == bad and attempt == 1 else None) as server:
        words = ("judge", path, "--judge", "anthropic", "--model", MODEL, "--base-url", server.url)
        first = craft(*words)
        assert first.status == 0 and "500 read, 50 written" in first.out and "1 invalid" in first.out, (
            first.err
        )
        assert "rubric" in first.out and "in our words" in first.out
        again = craft(*words)
        assert again.status == 0 and "600 read, 60 written" in again.out, again.err
        assert craft(*words, "--json").json["tokens"] == [600, 60]
        papers = craft(*words, "--prompt", "paper", "--json")
        assert papers.json["settings"]["rubric"] == "the paper's (§7, word for word)"
        assert "word for word" in craft(*words, "--prompt", "paper", "--dry-run").out


@pytest.mark.parametrize("count, fault", [(3, "prose"), (20, "prose"), (3, "refusal"), (3, 400)])
def test_a_judge_without_a_verdict_is_no_success(craft, tmp_path, monkeypatch, count, fault):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    path, _ = answers_file(tmp_path, count)
    with serving(lambda response, attempt: fault) as server:
        url = f"{server.url}/v1"
        said = craft("judge", path, "--judge", "openai", "--model", MODEL, "--base-url", url)
        assert "no verdict" in said.complaint and f"{MODEL} gave" in said.complaint
        assert len(server.at) <= min(count, 16)
    assert not list(tmp_path.glob("answers-judged/report-*.json"))


@pytest.mark.slow
@pytest.mark.timeout(900)  # a busy machine; 30 s on a quiet one
def test_a_thousand_calls(tmp_path, environment):
    """One case in ten meets a failure; Ctrl-C after 300 verdicts, the plug pulled after 600."""
    count, kinds = 1000, ("brief rate limit", "overloaded", "error", "drop", "cut body", "no json", "refusal")
    path, rows = answers_file(tmp_path, count)
    ill = {row["prediction"]: kinds[n // 10 % len(kinds)] for n, row in enumerate(rows) if n % 10 == 0}

    def fault(response: str, attempt: int) -> str | None:
        kind = ill.get(response)
        return kind if attempt == 1 or kind == "refusal" else None

    environment |= {"ANTHROPIC_API_KEY": KEY}
    with serving(fault) as server:
        words = ("judge", path, "--judge", "anthropic", "--model", MODEL, "--base-url", server.url)
        command = [sys.executable, "-m", "craft", *words, "--limit", count, "--concurrency", "8", "--json"]

        def start() -> subprocess.Popen[str]:
            pipe = subprocess.PIPE
            return subprocess.Popen(
                [*map(str, command)], env=environment, stdout=pipe, stderr=pipe, text=True
            )

        for verdicts, how in ((300, signal.SIGINT), (600, signal.SIGKILL)):
            process = start()
            while server.judged.total() < verdicts and process.poll() is None:
                time.sleep(0.02)
            os.kill(process.pid, how)
            _, told = process.communicate()
            assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), told
            if how == signal.SIGINT:
                assert "continues from there" in told
                assert set(server.judged.values()) == {1}
        killed = server.judged.copy()
        for _ in range(2):  # the second asks the few again whose body was no JSON
            process = start()
            said, told = process.communicate()
            assert process.returncode == 0, told
    assert server.complaints == []
    report = json.loads(said)
    refused = sum(kind == "refusal" for kind in ill.values())
    assert report["statuses"] == {
        "ok": count - refused,
        "refused": refused,
        "truncated": 0,
        "invalid": 0,
        "failed": 0,
    }
    assert report["figures"]["relevance"]["count"] == count - refused
    wanted = {row["id"]: verdict_on(row["prediction"]) for row in rows}
    for row in report["samples"]:
        if row["status"] == "ok":
            assert row["relevance"] == wanted[row["id"]]["relevance"]
    twice = [response for response, times in server.judged.items() if times > 1]
    assert len(server.judged) == count and len(twice) <= 8  # under way when the plug was pulled
    assert all(killed[response] == 1 for response in twice)
    kept = (tmp_path / "answers-judged/verdicts.jsonl").read_text()
    assert KEY not in kept + said + told
