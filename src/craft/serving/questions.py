"""A question to the server: checked, handed to the worker, and answered at once or as a stream."""

import asyncio
import queue
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image

from craft.core.errors import CraftError
from craft.evaluation.engine import Engine, EngineError
from craft.models.conversation import Turn, build_conversation
from craft.models.sampling import End, Piece
from craft.serving.metrics import Metrics
from craft.serving.pictures import read_image
from craft.serving.replies import Refusal, Reply, event
from craft.serving.schema import Common, Message
from craft.serving.settings import Access
from craft.serving.towers import BASE, Tower, Towers, UnknownEncoder
from craft.serving.worker import (
    Chosen,
    Embedded,
    Event,
    Failed,
    Request,
    Scores,
    Worker,
    check_options,
)

AUTO = "auto"
"""The encoder's name with which images are routed."""


class Questions:
    """Answers the questions of clients. The attributes are those of `craft.serving.app.make_app`."""

    def __init__(
        self, towers: Towers, worker: Worker, settings: Access, engine: Engine | None, metrics: Metrics
    ) -> None:
        self.towers = towers
        self.worker = worker
        self.settings = settings
        self.engine = engine
        self.metrics = metrics
        self.llm = towers.lvlm.name
        self._seeds = secrets.SystemRandom()

    def encoder_of(self, model: str) -> str | None:
        """The encoder's name in a model's name; None is the base tower."""
        if model == self.llm:
            return None
        llm, _, name = model.rpartition(":")
        if llm != self.llm or not name:
            raise self.unknown(model)
        return name

    def unknown(self, model: str) -> Refusal:
        """The 404 for a model that is not here; it lists those that are."""
        names = [self.llm, *(f"{self.llm}:{name}" for name in self.towers.names())]
        if len(names) > 1:
            names.append(f"{self.llm}:{AUTO}")
        return Refusal(
            404,
            f"There is no model {model[:200]!r} here. Models: {', '.join(names)}.",
            "model_not_found",
            "model",
        )

    def turns(self, messages: Sequence[Message]) -> tuple[list[Turn], list[str]]:
        """The conversation, and the addresses of its images in order."""
        turns, urls = [], []
        for message in messages:
            parts = message.content if isinstance(message.content, list) else []
            images = [part.url for part in parts if part.type == "image_url"]
            texts = [part.text or "" for part in parts if part.type == "text"]
            text = message.content if isinstance(message.content, str) else "\n".join(texts)
            role = "system" if message.role == "developer" else message.role
            turns.append(Turn(role, text, len(images)))
            urls += images
        if len(urls) > self.settings.limits.images:
            raise Refusal(
                400,
                f"The request has {len(urls)} images, and the server takes {self.settings.limits.images}.",
            )
        return turns, urls

    async def reply(
        self, http: HttpRequest, wanted: Common, turns: list[Turn], urls: list[str], chat: bool
    ) -> Response:
        """Answer a question.

        Args:
            http: the client's request, watched for its end.
            wanted: its parsed body.
            turns, urls: the conversation, and the addresses of its images in order.
            chat: whether the reply has the form of the chat route.

        Raises:
            Refusal: the question cannot be answered.
        """
        started = time.monotonic()
        encoder = self.encoder_of(wanted.model)
        label = encoder if encoder in self.towers.names() else AUTO if encoder == AUTO else BASE
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        try:
            request = await self._request(wanted, encoder, turns, urls)
            request.send = partial(_forward, loop, events)
            request.deadline = started + self.settings.timeout
            reply = Reply(wanted, chat, self.towers.lvlm.backbone)
            self.worker.submit(request)
        except queue.Full as error:
            self.metrics.requests.labels(label, "429").inc()
            raise Refusal(429, "Too many requests wait; try again later.", "queue_full") from error
        except Refusal as error:
            self.metrics.requests.labels(label, str(error.status)).inc()
            raise
        answers = self._events(request, reply, events, label, started)
        if not wanted.stream:
            return await self._whole(http, wanted, request, reply, answers)
        first = await self._first(request, answers)
        stream = self._stream(wanted, request, reply, answers, first)
        return StreamingResponse(stream, media_type="text/event-stream", headers=self._headers(reply))

    async def _request(
        self, wanted: Common, encoder: str | None, turns: list[Turn], urls: list[str]
    ) -> Request:
        """The request for the worker; everything that can be wrong with it is refused here."""
        limits, backbone = self.settings.limits, self.towers.lvlm.backbone
        if (wanted.length or 0) > limits.tokens or (wanted.n or 1) > limits.answers:
            raise Refusal(
                400, f"The server writes at most {limits.tokens} tokens and {limits.answers} answers."
            )
        if wanted.options and self.engine is not None:
            raise Refusal(
                400, "options are scored by the embedded engine only; leave them out.", param="options"
            )
        try:
            pieces = build_conversation(backbone.prompt, backbone.tokenizer, turns)
            if wanted.options is not None:
                check_options(self.towers.lvlm, turns[-1].text, wanted.options, bool(turns[-1].images))
            keep = wanted.keep_ratio or self.settings.keep_ratio
            images, towers = await self._images_and_towers(wanted.model, encoder, urls)
        except CraftError as error:
            raise Refusal(400, str(error)) from error
        length = (
            sum(map(len, pieces))
            + len(urls) * self.towers.lvlm.visual.grid[0] * self.towers.lvlm.visual.grid[1]
        )
        room = context_of(self.towers.lvlm) - length
        samplings = wanted.samplings(min(limits.tokens, max(room, 1)), self._seeds.getrandbits(63))
        if room < samplings[0].max_new_tokens:
            raise Refusal(
                400,
                f"The prompt has {length} tokens and the answer may have {samplings[0].max_new_tokens}; "
                f"the LLM reads {length + room} in all.",
                "context_length_exceeded",
            )
        return Request(
            pieces,
            images,
            [] if encoder == AUTO else towers * len(urls),
            send=lambda event: None,
            samplings=samplings,
            routes=towers if encoder == AUTO else None,
            question=turns[-1].text,
            options=wanted.options or (),
            keep_ratio=keep if images else 1.0,
            embed_only=self.engine is not None,
        )

    async def _images_and_towers(
        self, model: str, encoder: str | None, urls: Sequence[str]
    ) -> tuple[list[tuple[str, Image.Image]], list[Tower]]:
        """The images of a request, and at the same time the towers that may read them.

        Raises:
            Refusal: there is no such encoder, or it cannot be loaded.
            CraftError: an image cannot be read.
        """
        names = self.towers.names()
        if not urls and encoder not in (None, AUTO, *names):
            raise self.unknown(model)
        asked = names if encoder == AUTO else [encoder] if urls else []
        read = partial(read_image, limits=self.settings.limits, hosts=self.settings.hosts)
        results = await asyncio.gather(
            *(self._tower(name) for name in asked),
            *(asyncio.to_thread(read, url) for url in urls),
            return_exceptions=True,
        )
        for item in results:
            if isinstance(item, BaseException):
                raise item
        return results[len(asked) :], results[: len(asked)]  # pyright: ignore[reportReturnType]

    async def _tower(self, name: str | None) -> Tower:
        if name is None:
            return self.towers.base
        try:
            return await asyncio.to_thread(self.towers.get, name)
        except UnknownEncoder as error:
            raise Refusal(404, str(error), "model_not_found") from error
        except CraftError as error:
            raise Refusal(
                503, f"The encoder {name} cannot be loaded: {error}", "encoder_unavailable"
            ) from error

    async def _events(
        self, request: Request, reply: Reply, events: asyncio.Queue[Event], label: str, started: float
    ) -> AsyncIterator[Event]:
        """The events of a request, up to its end. They are counted; if nobody reads them, it is cancelled."""
        status, waiting = "499", len(request.samplings)
        try:
            async for item in self._answered(request, events, started):
                if isinstance(item, Chosen):
                    reply.chosen = item
                    if request.routes is not None:
                        for tower in item.towers:
                            self.metrics.routed.labels(tower.name).inc()
                waiting -= isinstance(item, End)
                yield item
                if isinstance(item, Scores) or waiting == 0:
                    status = "200"
                    return
        except Refusal as error:
            status = str(error.status)
            raise
        finally:
            request.cancelled.set()
            if status == "499":
                self.metrics.cancelled.inc()
            self._count(label, status, reply, started)

    async def _answered(
        self, request: Request, events: asyncio.Queue[Event], started: float
    ) -> AsyncIterator[Event]:
        """The worker's events; an engine's instead of the answer if there is one."""
        while True:
            left = started + self.settings.timeout - time.monotonic()
            try:
                item = await asyncio.wait_for(events.get(), max(left, 0.001))
            except TimeoutError as error:
                raise Refusal(
                    504, f"The answer took more than {self.settings.timeout:g} seconds.", "timeout"
                ) from error
            if isinstance(item, Failed):
                if isinstance(item.error, CraftError):
                    raise Refusal(400, str(item.error)) from item.error
                raise Refusal(500, "The server failed to answer; its log says why.") from item.error
            if isinstance(item, Embedded) and self.engine is not None:
                try:
                    async for piece in self.engine.write(item.prompt, request.samplings):
                        yield piece
                except EngineError as error:
                    raise Refusal(502, str(error), "engine_unavailable") from error
                return
            yield item

    async def _whole(
        self, http: HttpRequest, wanted: Common, request: Request, reply: Reply, answers: AsyncIterator[Event]
    ) -> Response:
        """The reply at once; the request is cancelled if the client leaves."""
        body: dict[str, Any] | None = None

        async def collect() -> None:
            nonlocal body
            async for item in answers:
                if isinstance(item, Scores):
                    body = reply.scored(wanted.options or (), item.values, self._temperature(reply))
                elif isinstance(item, Piece | End):
                    reply.add(item)

        task = asyncio.create_task(collect())
        watch = asyncio.create_task(_left(http))
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                request.cancelled.set()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                return Response(status_code=499)
            task.result()
        finally:
            watch.cancel()
        return JSONResponse(body or reply.whole(), headers=self._headers(reply))

    async def _first(self, request: Request, answers: AsyncIterator[Event]) -> Event:
        """The first event of a stream, so that what fails early has its own status."""
        return await anext(answers)

    async def _stream(
        self, wanted: Common, request: Request, reply: Reply, answers: AsyncIterator[Event], first: Event
    ) -> AsyncIterator[str]:
        try:
            for chunk in reply.opening():
                yield event(chunk)
            if isinstance(first, Piece | End) and (chunk := reply.add(first)):
                yield event(chunk)
            async for item in answers:
                if isinstance(item, Piece | End) and (chunk := reply.add(item)):
                    yield event(chunk)
            for chunk in reply.last(bool(wanted.stream_options and wanted.stream_options.include_usage)):
                yield event(chunk)
            yield event("[DONE]")
        except Refusal as error:
            yield event(error.body)
        finally:
            request.cancelled.set()

    def _headers(self, reply: Reply) -> dict[str, str]:
        towers = reply.chosen.towers if reply.chosen else ()
        return (
            {"x-craft-encoder": ",".join(f"{tower.name};{tower.hash}" for tower in towers)} if towers else {}
        )

    def _temperature(self, reply: Reply) -> float:
        """The calibration of the encoder that answered; 1 without one."""
        towers = reply.chosen.towers if reply.chosen else ()
        value = towers[0].manifest.get("answer_temperature") if towers else None
        return float(value) if value else 1.0

    def _count(self, label: str, status: str, reply: Reply, started: float) -> None:
        metrics, usage = self.metrics, reply.usage()
        if reply.chosen and reply.chosen.towers:
            label = reply.chosen.towers[0].name
        metrics.requests.labels(label, status).inc()
        metrics.seconds.labels(label).observe(time.monotonic() - started)
        metrics.prompt_tokens.labels(label).inc(usage["prompt_tokens"])
        metrics.answer_tokens.labels(label).inc(usage["completion_tokens"])
        metrics.image_tokens.labels(label).inc(usage["prompt_tokens_details"]["image_tokens"])


def context_of(lvlm: Any) -> int:
    """The number of tokens that the LLM reads."""
    config = lvlm.backbone.llm.config
    names = ("max_position_embeddings", "n_positions", "seq_length")
    sizes = [getattr(config, name, None) for name in names]
    return next((size for size in sizes if isinstance(size, int) and size > 0), 2**20)


def _forward(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], item: Event) -> None:
    """Hand an event from the worker's thread to the loop; the loop may have ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(events.put_nowait, item)


async def _left(request: HttpRequest) -> None:
    """Return when the client has gone."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.1)
