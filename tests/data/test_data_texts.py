"""Captions and statements from services, against a real HTTP server that speaks both protocols."""

import base64
import http.server
import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from craft.core.errors import ConfigError, DataError
from craft.core.service import Service
from craft.data import Sample, read_data
from craft.data.additions import with_texts
from craft.data.texts import caption_requests, rule_statements, statement_requests, write_texts
from replicas import class_folders, parquet, png

pytest.importorskip("openai", reason="the SDK is not installed: pip install 'craft-vlm[judge]'")
pytest.importorskip("anthropic", reason="the SDK is not installed: pip install 'craft-vlm[judge]'")


class Server:
    """What was asked, and how many more calls succeed."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.good = 10**9
        self.status: int | str = 500
        self.body: dict = {"error": {"message": "out of order"}}
        self.refusals = 0
        self.let_go = threading.Event()
        handler = type("Handler", (_Handler,), {"server_state": self})
        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    server_state: Server

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][0]["content"]
        text = next(part["text"] for part in content if part["type"] == "text")
        shown = [part for part in content if part["type"] != "text"]
        if len(state.asked) >= state.good and state.status in ("dies", "hangs", "drops"):
            if state.status == "dies":
                state.httpd.socket.close()
            elif state.status == "hangs":
                state.let_go.wait(30)
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if len(state.asked) >= state.good:
            state.refusals += 1
            self._send(state.status, state.body)
            return
        state.asked.append({"text": text, "model": body["model"], "cap": body["max_tokens"]})
        said = (
            "The car\nis red." if text.startswith("Rewrite") else f"A picture of {self._size(shown)} pixels."
        )
        if self.path.endswith("/chat/completions"):
            message = {"role": "assistant", "content": said}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._send(
                200, {"id": "1", "object": "chat.completion", "model": "m", "created": 1, "choices": [choice]}
            )
        else:
            assert self.path.startswith("/v1/messages") and "secret" in str(self.headers)
            told = {
                "id": "1",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "stop_reason": "end_turn",
            }
            usage = {"input_tokens": 1, "output_tokens": 1}
            self._send(200, told | {"content": [{"type": "text", "text": said}], "usage": usage})

    @staticmethod
    def _size(shown: list[dict]) -> str:
        part = shown[0]
        data = part["image_url"]["url"].split(",")[1] if "image_url" in part else part["source"]["data"]
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            return f"{image.width} x {image.height}"

    def _send(self, status: int, value: dict) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    state = Server()
    yield state
    state.let_go.set()
    state.httpd.shutdown()
    state.httpd.server_close()


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return read_data(class_folders(tmp_path / "pictures", ("ash", "elm"), each=3)).samples


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_captions_are_written_once_in_order_and_gone_on_with(
    server: Server, samples: list[Sample], tmp_path: Path
) -> None:
    out, service = (
        tmp_path / "captions.jsonl",
        Service("m", base_url=f"{server.url}/v1", retries=0, concurrency=1),
    )
    server.good = 4
    with pytest.raises(DataError) as caught:
        write_texts(caption_requests(samples, "m"), service, out, progress=False)
    assert str(caught.value).startswith(
        f"2 of 6 texts could not be written: that of {samples[4].image}: InternalServer"
    )
    assert [row["image"] for row in rows(out)] == [sample.image for sample in samples[:4]]
    assert rows(out)[0]["captions"] == ["A picture of 12 x 12 pixels."] and rows(out)[0]["model"] == "m"
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:20])  # corrected by hand, cut short by a crash
    out.write_text(out.read_text().replace("A picture of 12 x 12 pixels.", "Mine.", 1))
    server.good = 10**9
    assert write_texts(caption_requests(samples, "m"), service, out, progress=False) == 3
    assert [row["image"] for row in rows(out)] == [sample.image for sample in samples]
    assert rows(out)[0]["captions"] == ["Mine."] and len(server.asked) == 7
    mine = (
        out.read_text().replace("Mine.", "Mine\u2028too.").rstrip("\n")
    )  # an editor took the last end of line
    out.write_text(mine)
    assert write_texts(caption_requests(samples, "m"), service, out, progress=False) == 0
    assert out.read_text() == mine + "\n"
    assert (
        write_texts(caption_requests(samples, "other", 3), service, out, progress=False) == 6
    )  # another wish


def test_statements_by_a_model_and_by_rules(server: Server, tmp_path: Path) -> None:
    told = [Sample("a", png(1), "What color is the car?", "Red"), Sample("b", png(1), "How many?", "two")]
    service = Service("m", base_url=f"{server.url}/v1", retries=0)
    assert write_texts(statement_requests(told, "m"), service, tmp_path / "s.jsonl", progress=False) == 2
    assert [row["statement"] for row in rows(tmp_path / "s.jsonl")] == ["The car is red.", "The car is red."]
    assert {asked["text"].split("alone.\n")[1] for asked in server.asked} == {
        "Q: What color is the car?\nA: Red",
        "Q: How many?\nA: two",
    }
    assert [row["statement"] for row in rule_statements(told)] == ["The car is red.", "How many? two"]


def test_anthropics_protocol(
    server: Server, monkeypatch: pytest.MonkeyPatch, samples: list[Sample], tmp_path: Path
) -> None:
    service = Service("claude", "anthropic", server.url, retries=0)
    wishes = list(caption_requests(samples[:2], "claude"))
    with pytest.raises(ConfigError, match="needs a key in the environment variable ANTHROPIC_API_KEY"):
        write_texts(wishes, service, tmp_path / "c.jsonl", progress=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    assert write_texts(wishes, service, tmp_path / "c.jsonl", progress=False) == 2
    assert "secret" not in (tmp_path / "c.jsonl").read_text()


def test_a_service_that_turns_all_down_stops_at_once(
    server: Server, samples: list[Sample], tmp_path: Path
) -> None:
    server.good, server.status = 1, 401
    service = Service("m", base_url=f"{server.url}/v1", retries=0, concurrency=1)
    with pytest.raises(ConfigError, match="refuses every call"):
        write_texts(caption_requests(samples, "m"), service, tmp_path / "c.jsonl", progress=False)
    assert len(rows(tmp_path / "c.jsonl")) == 1


def test_a_server_that_hangs_up_fails_the_text_alone(
    server: Server, samples: list[Sample], tmp_path: Path
) -> None:
    server.good, server.status = 2, "drops"
    service = Service("m", base_url=f"{server.url}/v1", retries=0, concurrency=1)
    with pytest.raises(DataError, match=rf"{len(samples) - 2} of {len(samples)} texts could not be written"):
        write_texts(caption_requests(samples, "m"), service, tmp_path / "c.jsonl", progress=False)
    assert len(rows(tmp_path / "c.jsonl")) == 2


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "out of credit"}},
        {"error": "out of credit"},
        {"type": "error", "error": {"type": "x", "message": "out of credit"}},
        {"detail": "out of credit"},
        {"choices": [], "message": "out of credit"},
    ],
    ids=repr,
)
def test_an_error_with_status_200_keeps_the_servers_words(
    server: Server, samples: list[Sample], tmp_path: Path, monkeypatch, kind: str, body: dict
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    server.good, server.status, server.body = 1, 200, body
    url = f"{server.url}/v1" if kind == "openai" else server.url
    service = Service("m", kind, url, retries=0, concurrency=1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match=r"2 of 3 texts .*HTTP status 200.*out of credit"):
        write_texts(caption_requests(samples[:3], "m"), service, tmp_path / "c.jsonl", progress=False)


def test_a_refusal_keeps_the_models_words(server: Server, samples: list[Sample], tmp_path: Path) -> None:
    message = {"role": "assistant", "content": None, "refusal": "I cannot describe people."}
    server.good, server.status = 0, 200
    server.body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    service = Service("m", base_url=f"{server.url}/v1", retries=0)
    with pytest.raises(DataError, match="I cannot describe people"):
        write_texts(caption_requests(samples[:1], "m"), service, tmp_path / "c.jsonl", progress=False)


def test_a_model_that_writes_nothing_is_not_paid_for_all_texts(server: Server, tmp_path: Path) -> None:
    many = [Sample(str(n), png(1), f"What is {n}?", "Red") for n in range(40)]
    silent = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}]
    }
    server.good, server.status, server.body = 3, 200, silent
    service = Service("m", base_url=f"{server.url}/v1", retries=0, concurrency=1)
    with pytest.raises(DataError, match=r"8 texts in a row.*of 10: the model wrote nothing.*same command"):
        write_texts(statement_requests(many, "m"), service, tmp_path / "s.jsonl", progress=False)
    assert len(rows(tmp_path / "s.jsonl")) == 3 and server.refusals <= 11


def test_a_server_that_is_gone_stops_at_once(server: Server, samples: list[Sample], tmp_path: Path) -> None:
    server.good, server.status = 2, "dies"
    service = Service("m", base_url=f"{server.url}/v1", retries=0, concurrency=1)
    wishes = caption_requests(samples, "m")
    with pytest.raises(ConfigError, match=rf"{server.url}/v1.* cannot be reached.*--base-url.*safe"):
        write_texts(wishes, service, tmp_path / "c.jsonl", progress=False)
    assert [row["image"] for row in rows(tmp_path / "c.jsonl")] == [s.image for s in samples[:2]]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_server_that_was_never_there(
    monkeypatch: pytest.MonkeyPatch, samples: list[Sample], tmp_path: Path, kind: str
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
    service = Service("m", kind, f"http://me:hush@{place}/v1", retries=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError) as caught:
        write_texts(caption_requests(samples, "m"), service, tmp_path / "c.jsonl", progress=False)
    text = str(caught.value)
    assert f"The service at http://{place}/v1" in text and "refused" in text and "hush" not in text
    assert rows(tmp_path / "c.jsonl") == []


def test_an_address_that_is_none(samples: list[Sample], tmp_path: Path) -> None:
    service = Service("m", base_url="http://localhost:80oo/v1")
    with pytest.raises(ConfigError, match=r"--base-url http://localhost:80oo/v1 .*Invalid port"):
        write_texts(caption_requests(samples, "m"), service, tmp_path / "c.jsonl", progress=False)


def test_a_server_that_is_slow_fails_one_text(server: Server, samples: list[Sample], tmp_path: Path) -> None:
    server.good, server.status = 1, "hangs"
    service = Service("m", base_url=f"{server.url}/v1", retries=0, timeout=0.2)
    with pytest.raises(DataError, match=r"2 of 3 texts could not be written: .*APITimeoutError"):
        write_texts(caption_requests(samples[:3], "m"), service, tmp_path / "c.jsonl", progress=False)


@pytest.mark.parametrize("form", ["parquet", "inline", "copies"])
def test_each_picture_is_shown_once_however_it_is_kept(server: Server, tmp_path: Path, form: str) -> None:
    """Several questions about a picture, and copies of it, whose texts are joined by id."""
    told = [{"image": png(n % 3), "question": f"q{n}?", "answer": f"a{n % 2}"} for n in range(9)]
    if form == "parquet":
        source = parquet(tmp_path / "q.parquet", told)
    else:
        source = tmp_path / "q.jsonl"
        for n, row in enumerate(told):
            (tmp_path / f"{n}.png").write_bytes(row["image"])
            uri = "data:image/png;base64," + base64.b64encode(row["image"]).decode()
            row["image"] = uri if form == "inline" else f"{n}.png"
        source.write_text("\n".join(map(json.dumps, told)))
    samples, out = read_data(source).samples, tmp_path / "c.jsonl"
    service = Service("m", base_url=f"{server.url}/v1", retries=0)
    assert write_texts(caption_requests(samples, "m"), service, out, progress=False) == 9
    assert len(server.asked) == 3
    assert all(s.captions == ("A picture of 12 x 12 pixels.",) for s in with_texts(samples, out))
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:4]))  # within the rows of one picture
    assert write_texts(caption_requests(samples, "m"), service, out, progress=False) == 5
    assert out.read_text() == "".join(lines) and len(server.asked) == 5


def test_a_file_of_something_else_is_refused(samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl:1 was not written by this command"):
        write_texts(caption_requests(samples, "m"), Service("m"), tmp_path / "c.jsonl", progress=False)
    for foreign in ('{"theirs": 1}', "theirs"):  # without an end of line, as a row that was cut short
        (tmp_path / "d.json").write_text(foreign)
        with pytest.raises(DataError, match=r"d\.json:1 was not written by this command"):
            write_texts(caption_requests(samples, "m"), Service("m"), tmp_path / "d.json", progress=False)
        assert (tmp_path / "d.json").read_text() == foreign
    with pytest.raises(ConfigError, match="--count must be 1 to 3, not 4"):
        list(caption_requests(samples, "m", 4))
