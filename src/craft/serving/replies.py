"""Replies in OpenAI's form: whole answers, streams of events, and errors."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from craft.models.backbone import Backbone
from craft.models.sampling import End, Piece, Token
from craft.serving.schema import Common
from craft.serving.worker import Chosen

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
}
KINDS |= {429: "rate_limit_error", 503: "service_unavailable", 504: "timeout_error"}
"""OpenAI's name for an error, by HTTP status."""


def error_body(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """The body of an error reply."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Refusal(Exception):
    """A reply with an error status."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, code, param)


@dataclass
class Answer:
    """An answer as it grows: its text, its tokens with the text that each added, and how it ended."""

    text: str = ""
    tokens: list[tuple[str, Token]] = field(default_factory=list)
    reason: str | None = None
    length: int = 0


class Reply:
    """What one request is answered with.

    Args:
        wanted: the request.
        chat: whether the reply is to `/v1/chat/completions`.
        backbone: names tokens.

    Attributes:
        chosen: the towers and the length of the prompt, once they are known.
        answers: as far as they are written.
    """

    def __init__(self, wanted: Common, chat: bool, backbone: Backbone) -> None:
        self.model = wanted.model
        self.chat = chat
        self.answers = [Answer() for _ in range(wanted.n or 1)]
        self.chosen: Chosen | None = None
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._backbone = backbone
        self._logprobs = wanted.alternatives is not None
        self._codes = bool(wanted.codes)

    def add(self, event: Piece | End) -> dict[str, Any] | None:
        """Take an event; returns the chunk of a stream that it makes, or None."""
        answer = self.answers[event.index]
        if isinstance(event, End):
            answer.reason, answer.length = event.reason, event.tokens
            return self._chunk(event.index, "", None, event.reason)
        answer.text += event.text
        if event.token is not None:
            answer.tokens.append((event.text, event.token))
        if not event.text and not (self._logprobs and event.token):
            return None
        return self._chunk(event.index, event.text, event.token if self._logprobs else None, None)

    def opening(self) -> list[dict[str, Any]]:
        """The first chunks of a stream of the chat route, which name the role."""
        if not self.chat:
            return []
        return [self._chunk(n, "", None, None, role="assistant") for n in range(len(self.answers))]

    def whole(self) -> dict[str, Any]:
        """The reply without a stream."""
        choices = []
        for index, answer in enumerate(self.answers):
            content: dict[str, Any] = (
                {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
                if self.chat
                else {"text": answer.text}
            )
            logprobs = self._described(answer.tokens) if self._logprobs else None
            choices.append({"index": index, **content, "logprobs": logprobs, "finish_reason": answer.reason})
        return {**self._head(""), "choices": choices, "usage": self.usage(), **self.about()}

    def scored(self, options: Sequence[str], scores: Sequence[float], temperature: float) -> dict[str, Any]:
        """The reply to a request with options: the likeliest, and a probability for each. Ours.

        Args:
            scores: the log-probability of each option.
            temperature: of the encoder's calibration (Guo et al., 2017); 1 without one.
        """
        shares = (torch.tensor(scores, dtype=torch.float64) / temperature).softmax(0).tolist()
        order = sorted(range(len(options)), key=lambda n: -scores[n])
        self.answers[0].text, self.answers[0].reason = options[order[0]], "stop"
        reply = self.whole()
        reply["choices"][0]["options"] = [{"text": options[n], "probability": shares[n]} for n in order]
        return reply

    def usage(self) -> dict[str, Any]:
        """Numbers of tokens; those of images are part of the prompt's."""
        prompt = self.chosen.prompt_tokens if self.chosen else 0
        written = sum(answer.length for answer in self.answers)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"image_tokens": self.chosen.image_tokens if self.chosen else 0},
        }

    def about(self) -> dict[str, Any]:
        """Which encoders answered, by name and weights' hash: one entry per image. With `codes`, also the
        level-1 codes of the patches and which of them the LLM read. Ours."""
        if self.chosen is None:
            return {"craft": {"encoders": []}}
        entries: list[dict[str, Any]] = [
            {"name": tower.name, "weights": tower.hash} for tower in self.chosen.towers
        ]
        if self._codes:
            for entry, map in zip(entries, self.chosen.maps, strict=True):
                entry |= {"grid": list(map.grid), "codes": map.codes, "kept": map.kept}
        return {"craft": {"encoders": entries}}

    def last(self, with_usage: bool) -> list[dict[str, Any]]:
        """The chunk with the usage, if it is wanted."""
        return [{**self._head(".chunk"), "choices": [], "usage": self.usage()}] if with_usage else []

    def _head(self, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(
        self, index: int, text: str, token: Token | None, reason: str | None, role: str | None = None
    ) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if role is not None:
            delta["role"] = role
        if text or role is not None:
            delta["content"] = text
        content: dict[str, Any] = {"delta": delta} if self.chat else {"text": text}
        logprobs = None if token is None else self._described([(text, token)])
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head(".chunk"), "choices": [choice], **self.about()}

    def _described(self, tokens: Sequence[tuple[str, Token]]) -> dict[str, Any]:
        """Log-probabilities in the form of the route."""
        if self.chat:
            return {
                "content": [self._entry(token) | self._tops(token) for _, token in tokens],
                "refusal": None,
            }
        names = [self._name(token.id) for _, token in tokens]
        tops = [{self._name(index): value for index, value in token.top} for _, token in tokens]
        ends = [len(text) for text, _ in tokens]
        offsets = [sum(ends[:n]) for n in range(len(ends))]
        return {
            "tokens": names,
            "token_logprobs": [token.logprob for _, token in tokens],
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _entry(self, token: Token) -> dict[str, Any]:
        name = self._name(token.id)
        return {"token": name, "logprob": token.logprob, "bytes": list(name.encode())}

    def _tops(self, token: Token) -> dict[str, Any]:
        return {"top_logprobs": [self._entry(Token(index, value)) for index, value in token.top]}

    def _name(self, token: int) -> str:
        return str(self._backbone.tokenizer.decode([token]))


def event(body: dict[str, Any] | str) -> str:
    """One server-sent event."""
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    return f"data: {text}\n\n"
