"""A server on loopback that speaks Anthropic's and OpenAI's protocol, strictly, and misbehaves as told.

Its verdict is a function of the response that it is shown: a test can tell whether every case got its own.
"""

import base64
import io
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from craft.judging.cases import SCHEMA

KEY = "sk-test-1234567890-secret"
MODEL = "judge-1"
FAULTS = ("rate limit", "overloaded", "error", "cut body", "no json", "drop", "slow")
"""What goes wrong on the way; "cut body" and "no json" are beyond an SDK's retries."""


def verdict_on(response: str) -> dict[str, Any]:
    """What this judge thinks of a response."""
    size = sum(response.encode())
    return {
        "correctness": size % 2 == 0,
        "presence": size % 3 == 0,
        "relevance": size % 6,
        "faithfulness": size // 6 % 6,
        "verbosity": size // 36 % 6,
        "notes": f"seen: {response[:20]}",
    }


class JudgeServer(ThreadingHTTPServer):
    """See the module. `fault(response, attempt)` says what goes wrong: one of `FAULTS`, a reply that is no
    verdict ("refusal", "cut reply", "prose", "fenced", "wrong grade"), a body as a dict, a status as a
    number, or None."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, fault: Callable[[str, int], Any], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.fault = fault
        self.lock = threading.Lock()
        self.attempts: Counter[str] = Counter()
        self.judged: Counter[str] = Counter()
        self.at: list[tuple[str, float]] = []
        self.busy = self.most_busy = 0
        self.complaints: list[str] = []
        self.bodies: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no fault of the server."""


@contextmanager
def serving(fault: Callable[[str, int], Any] = lambda response, attempt: None, port: int = 0):
    """A running `JudgeServer`."""
    server = JudgeServer(fault, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        speak = {"/v1/messages": _anthropic, "/v1/chat/completions": _openai}.get(self.path)
        if speak is None:
            return self._send(404, {"error": {"type": "not_found_error", "message": f"no {self.path}"}})
        if KEY not in (self.headers.get("x-api-key"), (self.headers.get("authorization") or "")[7:]):
            told = self.headers.get("x-api-key") or self.headers.get("authorization")
            return self._send(401, {"error": {"type": "authentication_error", "message": f"bad key {told}"}})
        try:
            text = speak.check(body)
            response = re.search(r"<response>\n(.*)\n</response>", text, re.DOTALL)[1]  # type: ignore[index]
        except (AssertionError, KeyError, TypeError) as error:
            self.server.complaints.append(repr(error))
            return self._send(400, {"error": {"type": "invalid_request_error", "message": repr(error)}})
        if body["model"] != MODEL and not body["model"].startswith("claude"):
            return self._send(
                404, {"error": {"type": "not_found_error", "message": f"model: {body['model']}"}}
            )
        with self.server.lock:
            self.server.busy += 1
            self.server.most_busy = max(self.server.busy, self.server.most_busy)
            self.server.attempts[response] += 1
            self.server.at.append((response, time.monotonic()))
            self.server.bodies.append(body)
            attempt = self.server.attempts[response]
        try:
            self._answer(speak, body["model"], response, self.server.fault(response, attempt))
        finally:
            with self.server.lock:
                self.server.busy -= 1
        return None

    def _answer(self, speak: Any, model: str, response: str, fault: Any) -> None:
        if isinstance(fault, dict):
            return self._send(200, fault)
        error = {"type": "error", "error": {"type": "api_error", "message": str(fault)}}
        if isinstance(fault, int):
            return self._send(fault, error)
        if fault == "rate limit":
            return self._send(429, error, {"retry-after": "1"})
        if fault == "brief rate limit":
            return self._send(429, error, {"retry-after-ms": "20"})
        if fault in ("overloaded", "error"):
            return self._send(529 if fault == "overloaded" else 500, error, {"retry-after-ms": "10"})
        if fault == "no json":
            return self._send(200, b"<html>a proxy's page</html>")
        if fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        if fault == "slow":
            time.sleep(3)
        reply = json.dumps(speak.reply(model, response, fault)).encode()
        if fault == "cut body":
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply[: len(reply) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        if fault != "slow":
            with self.server.lock:
                self.server.judged[response] += 1
        return self._send(200, reply)

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # the client has given up


def _said(response: str, fault: str | None) -> str:
    text = json.dumps(verdict_on(response))
    if fault == "cut reply":
        return text[: len(text) // 2]
    if fault == "wrong grade":
        return json.dumps({**verdict_on(response), "relevance": 9})
    if fault == "prose":
        return "I would say this is quite good."
    if fault == "fenced":
        return f"```json\n{text}\n```"
    return text


def _is_png(data: str) -> None:
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert image.format == "PNG" and min(image.size) >= 200, image.size


class _anthropic:
    @staticmethod
    def check(body: dict[str, Any]) -> str:
        assert isinstance(body["max_tokens"], int) and "careful" in body["system"]
        assert body["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
        (message,) = body["messages"]
        image, text = message["content"]
        assert message["role"] == "user" and text["type"] == "text" and image["type"] == "image"
        assert image["source"]["type"] == "base64" and image["source"]["media_type"] == "image/png"
        _is_png(image["source"]["data"])
        return text["text"]

    @staticmethod
    def reply(model: str, response: str, fault: str | None) -> dict[str, Any]:
        stop = {"refusal": "refusal", "cut reply": "max_tokens"}.get(fault or "", "end_turn")
        said = "" if fault == "refusal" else _said(response, fault)
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": f"{model}-20250929",
            "content": [{"type": "text", "text": said}] if said else [],
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": 100, "output_tokens": 10},
        }


class _openai:
    @staticmethod
    def check(body: dict[str, Any]) -> str:
        system, user = body["messages"]
        assert system["role"] == "system" and "careful" in system["content"]
        form = body["response_format"]
        assert form["type"] == "json_schema" and form["json_schema"]["schema"] == SCHEMA
        assert form["json_schema"]["strict"] is True and isinstance(body["max_tokens"], int)
        image, text = user["content"]
        head, _, data = image["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        _is_png(data)
        return text["text"]

    @staticmethod
    def reply(model: str, response: str, fault: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": _said(response, fault), "refusal": None}
        if fault == "refusal":
            message |= {"content": None, "refusal": "I cannot judge this."}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": f"{model}-20250929",
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "finish_reason": "length" if fault == "cut reply" else "stop",
                    "logprobs": None,
                }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
