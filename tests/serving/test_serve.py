"""`craft serve` as a process: it starts, refuses what it cannot serve, and ends what it began."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from craft.cli.main import main
from serving.server import message

LLM = "craft-tiny/llama"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(*words) -> subprocess.Popen:
    command = [sys.executable, "-m", "craft", "serve", LLM, "--device", "cpu", "--dtype", "float32", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_until_ready(url, process) -> None:
    for _ in range(600):
        assert process.poll() is None, process.stderr.read()
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def test_sigterm_under_load_answers_what_was_asked(encoders, samples):
    port = free_port()
    process = start("--port", str(port), "--encoder", f"one={encoders['one']}")
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        body = {
            "model": f"{LLM}:one",
            "messages": [message("Describe it.", samples[0].image)],
            "max_tokens": 60,
        }
        replies = []
        clients = [
            threading.Thread(
                target=lambda: replies.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60))
            )
            for _ in range(8)
        ]
        for client in clients:
            client.start()
        while "craft_queue" not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join()
        process.wait(60)
    finally:
        process.kill()
        _, errors = process.communicate()
    assert [reply.status_code for reply in replies] == [200] * 8, errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "words, message",
    [
        (["--encoder", "one"], "NAME=DIR"),
        (["--encoder", "one=/nowhere"], "does not exist"),
        (["--encoder", "base={one}"], "cannot be called"),
        (["--keys", "my-secret"], "a file with a key in each line"),
        (["--keep-ratio", "2"], "keep"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(encoders, capsys, words, message):
    named = [word.format(one=encoders["one"]) for word in words]
    assert main(["serve", LLM, "--device", "cpu", "--dtype", "float32", *named]) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors and "my-secret" not in errors


def test_a_port_in_use_is_refused(encoders):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start("--port", str(taken.getsockname()[1]))
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "in use" in errors


def test_the_unit_is_valid_and_its_command_has_known_flags(tmp_path):

    from craft.serving.settings import ServeConfig

    unit = Path(__file__).parents[2] / "examples" / "serve" / "craft.service"
    text = unit.read_text()
    (command,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    flags = {word[2:].replace("-", "_") for word in command.split() if word.startswith("--")}
    assert flags <= set(ServeConfig.model_fields)
    (stop,) = [line for line in text.splitlines() if line.startswith("TimeoutStopSec=")]
    assert int(stop.partition("=")[2]) > ServeConfig().timeout
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze, which checks the unit")
    copy = tmp_path / unit.name
    copy.write_text(text.replace("/srv/craft/venv/bin/craft", sys.executable))
    checked = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stderr == ""
