"""The HTTP front: OpenAI's protocol over one LLM and many encoders."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from craft.core.errors import CodebookMismatchError, CraftError
from craft.core.progress import say
from craft.evaluation.engine import Engine, EngineError
from craft.models.conversation import Turn
from craft.serving.metrics import Metrics
from craft.serving.questions import AUTO, Questions
from craft.serving.replies import Refusal, error_body
from craft.serving.schema import ChatRequest, CompletionRequest
from craft.serving.settings import Access
from craft.serving.towers import Towers, UnknownEncoder
from craft.serving.worker import Worker

PAGE = Path(__file__).with_name("page.html")
B = TypeVar("B", bound=BaseModel)


def make_app(
    towers: Towers, worker: Worker, settings: Access | None = None, engine: Engine | None = None
) -> FastAPI:
    """The application.

    Args:
        towers: the LLM's towers.
        worker: started; the caller stops it.
        settings: how the server behaves.
        engine: answers the prompts instead of the worker, if given.
    """
    front = Front(towers, worker, settings or Access(), engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        front.draining = True
        if engine is not None:
            await engine.close()

    app = FastAPI(title="CRAFT", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.front = front
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(404, _http_error)
    app.add_exception_handler(405, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    app.add_api_route("/", front.page, methods=["GET"])
    app.add_api_route("/health", front.health, methods=["GET"])
    app.add_api_route("/ready", front.ready, methods=["GET"])
    app.add_api_route("/metrics", front.show_metrics, methods=["GET"])
    app.add_api_route("/v1/models", front.models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", front.model, methods=["GET"])
    app.add_api_route("/v1/chat/completions", front.chat, methods=["POST"])
    app.add_api_route("/v1/completions", front.complete, methods=["POST"])
    app.add_api_route("/v1/encoders", front.add_encoder, methods=["POST"])
    app.add_api_route("/v1/encoders/{name}", front.remove_encoder, methods=["DELETE"])
    return app


class Front:
    """The routes. Attributes: as `make_app`'s arguments; `draining` is set when the server stops."""

    def __init__(self, towers: Towers, worker: Worker, settings: Access, engine: Engine | None) -> None:
        self.towers = towers
        self.worker = worker
        self.settings = settings
        self.engine = engine
        self.metrics = Metrics(towers, worker)
        self.questions = Questions(towers, worker, settings, engine, self.metrics)
        self.draining = False
        self.llm = towers.lvlm.name

    # What the server is

    async def page(self) -> HTMLResponse:
        """The page for a browser."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    async def health(self) -> JSONResponse:
        """200 as long as the process answers and its worker lives."""
        alive = self.worker.alive
        return JSONResponse({"status": "ok" if alive else "the worker has stopped"}, 200 if alive else 503)

    async def ready(self) -> JSONResponse:
        """200 if requests are taken: not while the server stops, nor without its engine."""
        if self.draining or not self.worker.alive:
            return JSONResponse({"status": "stopping"}, 503)
        if self.engine is not None:
            try:
                await self.engine.find_model(fresh=True)
            except EngineError as error:
                return JSONResponse({"status": str(error)}, 503)
        return JSONResponse({"status": "ready"})

    async def show_metrics(self) -> Response:
        """Prometheus' page."""
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4")

    async def models(self, request: HttpRequest) -> JSONResponse:
        """The LLM, the LLM with each encoder, and with routing."""
        self._authorise(request)
        names = [None, *self.towers.names()]
        listed = await asyncio.gather(*(asyncio.to_thread(self._described, name) for name in names))
        if len(names) > 1:
            listed.append(self._entry(f"{self.llm}:{AUTO}", parent=self.llm))
        return JSONResponse({"object": "list", "data": listed})

    async def model(self, request: HttpRequest, name: str) -> JSONResponse:
        """One of `models`."""
        self._authorise(request)
        encoder = self.questions.encoder_of(name)
        if encoder == AUTO:
            return JSONResponse(self._entry(name, parent=self.llm))
        if encoder is not None and encoder not in self.towers.names():
            raise self.questions.unknown(name)
        return JSONResponse(await asyncio.to_thread(self._described, encoder))

    def _described(self, name: str | None) -> dict[str, Any]:
        fingerprint = self.towers.lvlm.visual.codebook.fingerprint
        if name is None:
            return self._entry(self.llm, codebook=fingerprint, weights=self.towers.base.hash)
        try:
            manifest = self.towers.describe(name)
        except CraftError as error:
            return self._entry(f"{self.llm}:{name}", parent=self.llm, error=str(error))
        data = manifest.get("data")
        data = data if isinstance(data, dict) else {}
        return self._entry(
            f"{self.llm}:{name}",
            parent=self.llm,
            codebook=(manifest.get("codebook") or {}).get("fingerprint"),
            weights=manifest.get("tower"),
            domain=data.get("domain") or data.get("name"),
            licence=data.get("licence"),
            accuracy=(manifest.get("metrics") or {}).get("accuracy"),
            loaded=name in self.towers.loaded(),
        )

    def _entry(self, id: str, **about: Any) -> dict[str, Any]:
        return {"id": id, "object": "model", "created": 0, "owned_by": "craft", **about}

    # Encoders

    async def add_encoder(self, request: HttpRequest) -> JSONResponse:
        """Make a folder of this machine known as an encoder: {"name": …, "folder": …}."""
        self._administer(request)
        body = await self._json(request)
        if (
            not isinstance(body, dict)
            or set(body) != {"name", "folder"}
            or not all(isinstance(v, str) for v in body.values())
        ):
            raise Refusal(400, 'The body has the form {"name": "apparel", "folder": "runs/apparel"}.')
        try:
            await asyncio.to_thread(self.towers.add, body["name"], body["folder"])
            tower = await asyncio.to_thread(self.towers.get, body["name"])
        except CodebookMismatchError as error:
            raise Refusal(409, str(error), "codebook_mismatch") from error
        except CraftError as error:
            raise Refusal(400, str(error)) from error
        return JSONResponse({"name": tower.name, "weights": tower.hash})

    async def remove_encoder(self, request: HttpRequest, name: str) -> JSONResponse:
        """Forget an encoder; running requests end with it."""
        self._administer(request)
        try:
            self.towers.remove(name)
        except UnknownEncoder as error:
            raise Refusal(404, str(error), "model_not_found") from error
        return JSONResponse({"name": name, "deleted": True})

    # Questions

    async def chat(self, request: HttpRequest) -> Response:
        """`POST /v1/chat/completions`."""
        self._authorise(request)
        wanted = self._parsed(ChatRequest, await self._json(request))
        turns, urls = self.questions.turns(wanted.messages)
        return await self.questions.reply(request, wanted, turns, urls, chat=True)

    async def complete(self, request: HttpRequest) -> Response:
        """`POST /v1/completions`."""
        self._authorise(request)
        wanted = self._parsed(CompletionRequest, await self._json(request))
        return await self.questions.reply(request, wanted, [Turn("user", wanted.prompt)], [], chat=False)

    # Bodies, names and keys

    def _authorise(self, request: HttpRequest) -> None:
        if self.settings.keys and not _matches(request, self.settings.keys):
            raise Refusal(
                401,
                "The API key is missing or wrong; send it as `Authorization: Bearer KEY`.",
                "invalid_api_key",
            )

    def _administer(self, request: HttpRequest) -> None:
        if self.settings.admin_key is None:
            raise Refusal(403, "This server does not change its encoders; start it with --admin-key.")
        if not _matches(request, (self.settings.admin_key,)):
            raise Refusal(401, "The admin key is missing or wrong.", "invalid_api_key")

    async def _json(self, request: HttpRequest) -> Any:
        """The body, up to the limits of size and time, as JSON."""
        content, limit = bytearray(), self.settings.limits.body * 4 // 3 + 2**20  # images are base64
        try:
            async with asyncio.timeout(self.settings.timeout):
                async for part in request.stream():
                    content += part
                    if len(content) > limit:
                        raise Refusal(413, f"The body has more than {limit} bytes.")
        except TimeoutError as error:
            seconds = f"{self.settings.timeout:g} seconds"
            raise Refusal(408, f"The body did not arrive within {seconds}.", "timeout") from error
        except ClientDisconnect as error:  # nobody reads this
            raise Refusal(499, "The client has left.") from error
        try:
            body = json.loads(bytes(content), parse_constant=_no_constant, object_pairs_hook=_once)
            json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is no text
            return body
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"The body is not JSON: {str(error)[:200]}") from error

    def _parsed(self, kind: type[B], body: Any) -> B:
        if not isinstance(body, dict):
            raise Refusal(400, "The body has to be a JSON object.")
        try:
            return kind.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or None
            message = f"{where}: {first['msg']}" if where else first["msg"]
            if first["type"] == "extra_forbidden":
                message = f"{where} is not supported here; leave it out"
            raise Refusal(400, message, param=where) from error


def _matches(request: HttpRequest, keys: Sequence[str]) -> bool:
    """Whether the request has one of the keys; every key is compared, in constant time."""
    sent = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
    return any([hmac.compare_digest(sent, key.encode()) for key in keys])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a repeated key, clients and servers take different values."""
    body = dict(pairs)
    if len(body) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it has the key {repeated[:40]!r} twice")
    return body


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _refused(request: HttpRequest, error: Exception) -> JSONResponse:
    status = getattr(error, "status", 500)
    headers = {"Retry-After": "1"} if status == 429 else {}
    return JSONResponse(getattr(error, "body", {}), status, headers=headers)


def _http_error(request: HttpRequest, error: Exception) -> JSONResponse:
    status = int(getattr(error, "status_code", 500))
    return JSONResponse(
        error_body(status, f"{request.method} {request.url.path}: {getattr(error, 'detail', error)}"), status
    )


def _unexpected(request: HttpRequest, error: Exception) -> JSONResponse:
    say(f"{request.method} {request.url.path} failed: {type(error).__name__}: {error}")
    return JSONResponse(error_body(500, "The server failed to answer; its log says why."), 500)
