"""Judges that are services: Anthropic's (the paper's judge, §7), and any server of OpenAI's protocol.

A server on this machine is such a server too: `--judge openai --base-url http://localhost:8000/v1`. The SDKs
handle timeouts, rate limits and retries. Keys come from the environment and go to the SDK only.
"""

import base64
import os
from collections.abc import Callable
from typing import Any

from craft.core.errors import ConfigError
from craft.core.service import (
    check_reached,
    choice_of,
    client_of,
    error_line,
    key_of,
    sdk_of,
    shown_url,
    written_in,
)
from craft.judging.cases import SCHEMA, Ask, Case, Judge, Reply, Rubric, png, read_rubric, reply_of, user_text
from craft.judging.config import JudgeConfig

PAPER_MODEL = "claude-sonnet-4-5"
"""Source: §7."""

PRICES: dict[str, tuple[float, float]] = {PAPER_MODEL: (3.0, 15.0)}
"""US dollars per million tokens read and written, as listed for the paper's judge in 2025."""

Send = Callable[[str, str | None], Reply]  # text, base64 image
_WHO, _INSTEAD = "This judge", ", or use --judge offline"


def anthropic_judge(config: JudgeConfig) -> Judge:
    """A judge of Anthropic's Messages API; by default the paper's: Claude Sonnet 4.5, temperature 0.6.

    Its `start` raises a ConfigError if the SDK is not installed or ANTHROPIC_API_KEY is not set.

    Raises:
        ConfigError: the rubric cannot be used.
    """
    model, rubric = config.model or PAPER_MODEL, read_rubric(config.prompt)

    def ready() -> tuple[Any, str | None]:
        return sdk_of("anthropic", _WHO, _INSTEAD), key_of("ANTHROPIC_API_KEY", True, _WHO)

    def start() -> Ask:
        sdk, key = ready()
        client = client_of(sdk, sdk.Anthropic, key, config)
        # The SDK's own signature no longer has a temperature.
        extra = {} if config.temperature is None else {"temperature": config.temperature}

        def send(text: str, image: str | None) -> Reply:
            source = {"type": "base64", "media_type": "image/png", "data": image}
            shown = [] if image is None else [{"type": "image", "source": source}]
            message = client.messages.create(
                model=model,
                max_tokens=config.max_tokens,
                system=rubric.system,
                messages=[{"role": "user", "content": [*shown, {"type": "text", "text": text}]}],
                output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
                extra_body=extra,
            )
            written = written_in(message)
            tokens = (message.usage.input_tokens, message.usage.output_tokens)
            if message.stop_reason == "refusal":
                return Reply("refused", model=message.model, tokens=tokens, detail=written[:300])
            return reply_of(written, message.model, tokens, cut=message.stop_reason == "max_tokens")

        return _guarded(send, rubric, sdk, key, str(client.base_url))

    url = config.base_url or os.environ.get("ANTHROPIC_BASE_URL")
    return _judge("anthropic", config, model, url, rubric, start, ready)


def openai_judge(config: JudgeConfig) -> Judge:
    """A judge on a server of OpenAI's chat protocol: OpenAI's own, or, without a key, that of `base_url`.

    Its `start` raises a ConfigError if the SDK is not installed, or if OpenAI itself is called without a key.

    Raises:
        ConfigError: no model is named, or the rubric cannot be used.
    """
    model = config.model
    if model is None:
        raise ConfigError(
            "A judge of OpenAI's protocol needs --model, the name by which its server knows it. For a server "
            "on this machine (vLLM, llama.cpp, Ollama) add --base-url http://localhost:8000/v1."
        )
    rubric, url = read_rubric(config.prompt), config.base_url or os.environ.get("OPENAI_BASE_URL")

    def ready() -> tuple[Any, str | None]:
        return sdk_of("openai", _WHO, _INSTEAD), key_of("OPENAI_API_KEY", not url, _WHO)

    def start() -> Ask:
        sdk, key = ready()
        client = client_of(sdk, sdk.OpenAI, key or "none", config)
        # OpenAI's newer models reject the old name of the cap; other servers may not know the new one.
        extra: dict[str, Any] = {"max_tokens" if url else "max_completion_tokens": config.max_tokens}
        extra |= {} if config.temperature is None else {"temperature": config.temperature}
        schema = {"name": "verdict", "strict": True, "schema": SCHEMA}

        def send(text: str, image: str | None) -> Reply:
            data_url = {"url": f"data:image/png;base64,{image}"}
            shown = [] if image is None else [{"type": "image_url", "image_url": data_url}]
            answer = client.chat.completions.create(
                model=model,
                messages=[
                    {"role": "system", "content": rubric.system},
                    {"role": "user", "content": [*shown, {"type": "text", "text": text}]},
                ],
                response_format={"type": "json_schema", "json_schema": schema},
                **extra,
            )
            choice, usage = choice_of(answer), answer.usage
            tokens = (getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0)
            written = choice.message.refusal or choice.message.content or ""
            if choice.message.refusal or choice.finish_reason == "content_filter":
                return Reply("refused", model=answer.model, tokens=tokens, detail=written[:300])
            return reply_of(written, answer.model, tokens, cut=choice.finish_reason == "length")

        return _guarded(send, rubric, sdk, key, str(client.base_url))

    return _judge("openai", config, model, url, rubric, start, ready)


def _judge(
    kind: str,
    config: JudgeConfig,
    model: str,
    url: str | None,
    rubric: Rubric,
    start: Callable[[], Ask],
    ready: Callable[[], object],
) -> Judge:
    identity = {
        "judge": kind,
        "model": model,
        "url": url and shown_url(url),  # it is written to disk
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
        "prompt": rubric.identity,
    }
    listed = next((price for name, price in PRICES.items() if model.startswith(name)), None)
    return Judge(
        model,
        identity,
        start,
        concurrency=config.concurrency,
        price=config.price or listed,
        ready=ready,
        rubric=rubric,
    )


def _guarded(send: Send, rubric: Rubric, sdk: Any, key: str | None, url: str) -> Ask:
    """Make a judge's `ask` from `send`: the SDK's errors become replies, but those that every case would
    meet become `ConfigError`s. No message contains the key."""
    hopeless = (sdk.AuthenticationError, sdk.PermissionDeniedError, sdk.NotFoundError)

    def ask(case: Case) -> Reply:
        text = user_text(rubric, case)
        image = None if case.image is None else base64.b64encode(png(case.image)).decode("ascii")
        try:
            return send(text, image)
        except hopeless as error:
            raise ConfigError(
                f"The judge's service rejects every call ({error_line(error, key, 500)}). Check the key, "
                "--model (models are retired in time) and --base-url; the verdicts so far are stored."
            ) from None
        except (sdk.APIError, ValueError, AttributeError, TypeError, LookupError) as error:
            check_reached(error, key, "The judge's service", url, "verdicts")
            return Reply("failed", detail=error_line(error, key, 500))  # the last four: a malformed body

    return ask
