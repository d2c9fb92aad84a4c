"""An engine that answers embedded prompts: an unmodified `vllm serve LLM --enable-prompt-embeds`.

The whole prompt is embedded here and sent to the completions route, because mixed prompts of the chat route
can get wrong answers from vLLM's prefix cache. An engine that loads a client's tensor trusts that client, so
every tensor is made here.
"""

import asyncio
import base64
import io
import json
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import torch
from torch import Tensor

from craft.core.errors import CraftError
from craft.models.image_lora import has_image_lora
from craft.models.lvlm import LVLM
from craft.models.sampling import End, Piece, Reason, Sampling, Token

CONCURRENT = 64
"""Requests to an engine at the same time."""

CONNECT = 10.0
"""Seconds to wait for a connection."""


def refuse_lora(lvlm: LVLM) -> None:
    """Refuse an engine for a backbone whose LoRA is not in the weights of an LLM that the engine can serve.

    Raises:
        CraftError: it is such a backbone.
    """
    backbone = lvlm.backbone
    if has_image_lora(backbone.llm) or (backbone.borrowed is not None and backbone.borrowed.lora):
        raise CraftError(
            f"The LLM of {lvlm.name} has LoRA beside its weights, which an engine that serves the LLM does "
            "not have, so it would answer otherwise. Leave --engine out, or use a backbone of `craft align "
            "--set lora.scope=all`, whose llm/ has LoRA merged in."
        )


class EngineError(CraftError):
    """The engine cannot be reached, or refused a request; the message has its words."""


class Engine:
    """A client of the engine.

    Args:
        url: its address, as `http://127.0.0.1:8000` or with `/v1`.
        model: the name that the engine serves; None asks it.
        key: its API key.
        timeout: seconds for an answer.
    """

    def __init__(
        self, url: str, model: str | None = None, key: str | None = None, timeout: float = 300.0
    ) -> None:
        import httpx

        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(
            headers=headers, timeout=httpx.Timeout(timeout, connect=CONNECT), limits=limits
        )

    async def find_model(self, fresh: bool = False) -> str:
        """The name of the model that the engine serves.

        Args:
            fresh: ask the engine even if the name is known.

        Raises:
            EngineError: it cannot be reached.
        """
        model = self.model
        if model is None or fresh:
            body = await self._json("GET", "/v1/models")
            names = [entry.get("id") for entry in body.get("data", []) if isinstance(entry, dict)]
            if not names:
                raise EngineError(f"The engine at {self.url} serves no model.")
            model = str(model) if model in names else str(names[0])
            self.model = model
        return model

    async def write(self, prompt: Tensor, samplings: Sequence[Sampling]) -> AsyncIterator[Piece | End]:
        """The answers to an embedded prompt, as they come.

        Args:
            prompt: `[T, h]`, of this process and never of a client.
            samplings: one per answer; their seeds follow each other.

        Raises:
            EngineError: the engine cannot be reached, or refuses the request.
        """
        import httpx

        first = samplings[0]
        body: dict[str, Any] = {
            "model": await self.find_model(),
            "prompt_embeds": packed(prompt),
            "max_tokens": first.max_new_tokens,
            "temperature": first.temperature,
            "top_p": first.top_p,
            "n": len(samplings),
            "stop": list(first.stop) or None,
            "seed": first.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if first.logprobs is not None:
            body |= {"logprobs": first.logprobs, "return_tokens_as_token_ids": True}
        answers = [_Answer() for _ in samplings]
        try:
            async with self._client.stream("POST", f"{self.url}/v1/completions", json=body) as response:
                if response.status_code != 200:
                    raise self._refusal(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    for event in self._events(json.loads(line[6:]), answers):
                        yield event
        except httpx.HTTPError as error:
            raise EngineError(
                f"The engine at {self.url} cannot be reached: {type(error).__name__}."
            ) from error

        for index, answer in enumerate(answers):
            yield End(index, answer.reason, answer.tokens)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _events(self, chunk: dict[str, Any], answers: Sequence["_Answer"]) -> list[Piece]:
        if "error" in chunk:
            raise EngineError(f"The engine at {self.url}: {chunk['error'].get('message', 'an error')}")
        pieces: list[Piece] = []
        for choice in chunk.get("choices") or ():
            index = int(choice["index"])
            text, written = answers[index].add(str(choice.get("text") or "")), _tokens(choice.get("logprobs"))
            answers[index].tokens += len(written) or 1
            pieces += [
                Piece(index, text if n == 0 else "", token) for n, token in enumerate(written or [None])
            ]
            if choice.get("finish_reason") == "length":
                answers[index].reason = "length"
        usage = chunk.get("usage")
        if usage and len(answers) == 1:
            answers[0].tokens = int(usage["completion_tokens"])
        return pieces

    async def _json(self, method: str, path: str) -> dict[str, Any]:
        import httpx

        try:
            response = await self._client.request(method, f"{self.url}{path}")
        except httpx.HTTPError as error:
            raise EngineError(
                f"The engine at {self.url} cannot be reached: {type(error).__name__}."
            ) from error
        if response.status_code != 200:
            raise self._refusal(response.status_code, response.content)
        body = response.json()
        return body if isinstance(body, dict) else {}

    def _refusal(self, status: int, content: bytes) -> EngineError:
        """An error with the engine's own words."""
        try:
            body = json.loads(content)
            words = body.get("error", body)
            words = words.get("message", words) if isinstance(words, dict) else words
        except (ValueError, AttributeError):
            words = content[:200].decode(errors="replace")
        return EngineError(f"The engine at {self.url} answered with status {status}: {words}")


def write_all(url: str, prompts: Sequence[Tensor], samplings: Sequence[Sampling]) -> list[str]:
    """The answers of an engine to embedded prompts, `CONCURRENT` at a time.

    Args:
        url: the engine's address.
        prompts: `[T, h]` each.
        samplings: one per prompt.

    Raises:
        EngineError: the engine cannot be reached, or refuses a request.
    """
    key = os.environ.get("CRAFT_ENGINE_KEY")

    async def write() -> list[str]:
        engine, slots = Engine(url, key=key), asyncio.Semaphore(CONCURRENT)

        async def answer(prompt: Tensor, sampling: Sampling) -> str:
            async with slots:
                return "".join(
                    [e.text async for e in engine.write(prompt, [sampling]) if isinstance(e, Piece)]
                )

        try:
            return await asyncio.gather(*map(answer, prompts, samplings))
        finally:
            await engine.close()

    return asyncio.run(write())


class _Answer:
    """An answer of the engine: stripped like `LVLM.answer`'s, although it comes in pieces."""

    def __init__(self) -> None:
        self.tokens = 0
        self.reason: Reason = "stop"
        self._held = ""
        self._begun = False

    def add(self, text: str) -> str:
        """The text that another piece adds; white space is held until something follows it."""
        text = self._held + text
        if not self._begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._held = text[len(kept) :]
        self._begun = self._begun or bool(kept)
        return kept


def packed(prompt: Tensor) -> str:
    """A tensor as base64 of `torch.save`, the form that vLLM reads."""
    stream = io.BytesIO()
    torch.save(prompt.detach().cpu().contiguous().clone(), stream)
    return base64.b64encode(stream.getvalue()).decode()


def _tokens(logprobs: Any) -> list[Token]:
    """The tokens of a chunk, which vLLM names `token_id:NUMBER`."""
    if not logprobs:
        return []
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    return [
        Token(_number(name), value, tuple((_number(n), v) for n, v in (top or {}).items()))
        for name, value, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    ]


def _number(name: str) -> int:
    return int(name.partition(":")[2]) if name.startswith("token_id:") else -1
