"""A small server in vLLM's protocol for embedded prompts, answered by transformers one prompt at a time.

`python scripts/stand_in_engine.py MODEL --port N` takes the place of `vllm serve LLM --enable-prompt-embeds`
in tests and measurements.
"""

import argparse
import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

import craft
from craft.models.lvlm import LVLM
from craft.models.sampling import Batch, Sampling

NAME = "the-llm"
"""The name under which the LLM is served."""


def stand_in(lvlm: LVLM, seen: list[dict[str, Any]] | None = None) -> FastAPI:
    """vLLM's routes for embedded prompts.

    Args:
        lvlm: its LLM answers.
        seen: takes the body of each request.
    """
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": NAME}]}

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        body = await request.json()
        if seen is not None:
            seen.append(body)
        if body["model"] != NAME:
            return JSONResponse({"error": {"message": f"no model {body['model']}"}}, 404)
        return StreamingResponse(written(lvlm, body), media_type="text/event-stream")

    return app


async def written(lvlm: LVLM, body: dict[str, Any]) -> AsyncIterator[str]:
    """The events of one request, a token in each."""
    prompt = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
    seed, count = body["seed"] or 0, body.get("n") or 1
    samplings = [
        Sampling(body["max_tokens"], body["temperature"], body["top_p"], seed + number)
        for number in range(count)
    ]
    batch, before = Batch(lvlm.backbone, [[prompt]] * count, samplings), [""] * count
    while not batch.finished:
        for row, _ in batch.step():
            whole: Any = lvlm.backbone.tokenizer.decode(batch.ids[row], skip_special_tokens=True)
            yield chunk(index=row, text=whole[len(before[row]) :], finish_reason=None)
            before[row] = whole
    for row, ended in enumerate(batch.ended):
        yield chunk(index=row, text="", finish_reason="stop" if ended else "length")
    yield event({"choices": [], "usage": {"completion_tokens": sum(map(len, batch.ids))}})
    yield "data: [DONE]\n\n"


def chunk(**choice: Any) -> str:
    """An event with one choice."""
    return event({"choices": [choice]})


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body)}\n\n"


def main() -> None:
    """Serve until the process is ended."""
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8100)
    args = parser.parse_args()
    lvlm = craft.load(args.model, device="cpu", dtype="float32")
    uvicorn.run(stand_in(lvlm), host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
