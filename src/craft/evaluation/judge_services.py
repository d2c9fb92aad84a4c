"""Judges behind a service: Anthropic's SDK (the paper's judge, §7), and OpenAI's for any server of its kind.

Timeouts, rate limits and retries are the SDKs'. Keys come from the environment and go to the SDK alone.
"""

import base64
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft.core.errors import ConfigError
from craft.core.service import check_reached, client_of, error_line, key_of, sdk_of, shown_url
from craft.evaluation.judge import SCHEMA, Ask, Case, Judge, Prompt, Reply, reply_of
from craft.evaluation.judge_prompt import png, read_prompt, user_text

PAPER_MODEL = "claude-sonnet-4-5"
"""Source: §7."""

PRICES: dict[str, tuple[float, float]] = {PAPER_MODEL: (3.0, 15.0)}
"""US dollars per million tokens read and written, as listed for the paper's judge in 2025."""

Send = Callable[[str, str | None], Reply]  # text, base64 picture
_WHO, _INSTEAD = "This judge", ", or use --judge offline"


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of a judge behind a service; the defaults are the paper's where it gives them (§7).

    Attributes:
        model: what the service calls it; None is the paper's, which only Anthropic has.
        base_url: another server of the protocol, such as vLLM, llama.cpp or Ollama.
        temperature: None sends none; newer models take none.
        max_tokens: cap on a reply.
        timeout: seconds for one attempt.
        retries: further attempts after a rate limit, a timeout or a fault of the server.
        concurrency: calls at once.
        price: US dollars per million tokens read and written, for the estimate.
        prompt: a file with another rubric; None is ours.
    """

    model: str | None = None
    base_url: str | None = None
    temperature: float | None = 0.6
    max_tokens: int = 1024
    timeout: float = 120.0
    retries: int = 5
    concurrency: int = 4
    price: tuple[float, float] | None = None
    prompt: str | Path | None = None


def anthropic_judge(settings: ServiceSettings | None = None) -> Judge:
    """A judge behind Anthropic's Messages API; by default the paper's: Claude Sonnet 4.5, temperature 0.6.

    Its `start` raises a ConfigError where the SDK is not installed or ANTHROPIC_API_KEY is not set.
    """
    given = settings or ServiceSettings()
    model, prompt = given.model or PAPER_MODEL, read_prompt(given.prompt)

    def ready() -> tuple[Any, str | None]:
        return sdk_of("anthropic", _WHO, _INSTEAD), key_of("ANTHROPIC_API_KEY", True, _WHO)

    def start() -> Ask:
        sdk, key = ready()
        client = client_of(sdk, sdk.Anthropic, key, given)
        # The SDK's own signature has no temperature any more.
        extra = {} if given.temperature is None else {"temperature": given.temperature}

        def send(text: str, image: str | None) -> Reply:
            source = {"type": "base64", "media_type": "image/png", "data": image}
            shown = [] if image is None else [{"type": "image", "source": source}]
            message = client.messages.create(
                model=model,
                max_tokens=given.max_tokens,
                system=prompt.system,
                messages=[{"role": "user", "content": [*shown, {"type": "text", "text": text}]}],
                output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
                extra_body=extra,
            )
            tokens = (message.usage.input_tokens, message.usage.output_tokens)
            said = "".join(block.text for block in message.content if block.type == "text")
            if message.stop_reason == "refusal":
                return Reply("refused", model=message.model, tokens=tokens, detail=said[:300])
            return reply_of(said, message.model, tokens, cut=message.stop_reason == "max_tokens")

        return _guarded(send, prompt, sdk, key, str(client.base_url))

    return _judge("anthropic", model, given, prompt, os.environ.get("ANTHROPIC_BASE_URL"), start, ready)


def openai_judge(settings: ServiceSettings) -> Judge:
    """A judge behind a server of OpenAI's chat protocol: OpenAI's own, or that of `base_url`, without a key.

    Its `start` raises a ConfigError where the SDK is not installed, or OpenAI itself is asked without a key.

    Raises:
        ConfigError: no model is named.
    """
    given = settings
    if given.model is None:
        raise ConfigError(
            "A judge of OpenAI's protocol needs --model: the name by which its server knows it."
        )
    prompt = read_prompt(given.prompt)
    elsewhere = given.base_url or os.environ.get("OPENAI_BASE_URL")

    def ready() -> tuple[Any, str | None]:
        return sdk_of("openai", _WHO, _INSTEAD), key_of("OPENAI_API_KEY", not elsewhere, _WHO)

    def start() -> Ask:
        sdk, key = ready()
        client = client_of(sdk, sdk.OpenAI, key or "none", given)
        # OpenAI's newer models refuse the old name of the cap; other servers may not know the new one.
        extra: dict[str, Any] = {"max_tokens" if elsewhere else "max_completion_tokens": given.max_tokens}
        extra |= {} if given.temperature is None else {"temperature": given.temperature}
        form = {"name": "verdict", "strict": True, "schema": SCHEMA}

        def send(text: str, image: str | None) -> Reply:
            url = {"url": f"data:image/png;base64,{image}"}
            shown = [] if image is None else [{"type": "image_url", "image_url": url}]
            answer = client.chat.completions.create(
                model=given.model,
                messages=[
                    {"role": "system", "content": prompt.system},
                    {"role": "user", "content": [*shown, {"type": "text", "text": text}]},
                ],
                response_format={"type": "json_schema", "json_schema": form},
                **extra,
            )
            choice, usage = answer.choices[0], answer.usage
            tokens = (getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0)
            said = choice.message.refusal or choice.message.content or ""
            if choice.message.refusal or choice.finish_reason == "content_filter":
                return Reply("refused", model=answer.model, tokens=tokens, detail=said[:300])
            return reply_of(said, answer.model, tokens, cut=choice.finish_reason == "length")

        return _guarded(send, prompt, sdk, key, str(client.base_url))

    return _judge("openai", given.model, given, prompt, elsewhere, start, ready)


def _judge(
    kind: str,
    model: str,
    settings: ServiceSettings,
    prompt: Prompt,
    elsewhere: str | None,
    start: Callable[[], Ask],
    ready: Callable[[], object],
) -> Judge:
    if settings.concurrency < 1:
        raise ConfigError(f"concurrency must be at least 1, not {settings.concurrency}: nobody would ask.")
    url = settings.base_url or elsewhere
    identity = {
        "judge": kind,
        "model": model,
        "url": url and shown_url(url),  # it is kept
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "prompt": prompt.identity,
    }
    known = next((price for name, price in PRICES.items() if model.startswith(name)), None)
    price = settings.price or known
    concurrency = settings.concurrency
    return Judge(model, identity, start, concurrency=concurrency, price=price, ready=ready, prompt=prompt)


def _guarded(send: Send, prompt: Prompt, sdk: Any, key: str | None, url: str) -> Ask:
    """From `send` to a judge's `ask`: the SDK's errors become replies, but for those that every case would
    meet, which are `ConfigError`s. No message holds the key."""
    hopeless = (sdk.AuthenticationError, sdk.PermissionDeniedError, sdk.NotFoundError)

    def ask(case: Case) -> Reply:
        text = user_text(prompt, case)
        image = None if case.image is None else base64.b64encode(png(case.image)).decode("ascii")
        try:
            return send(text, image)
        except hopeless as error:
            raise ConfigError(
                f"The judge's service turns every call down ({error_line(error, key, 500)}). Check the key, "
                "--model (models are retired in time) and --base-url; the verdicts so far are kept."
            ) from None
        except (sdk.APIError, ValueError, AttributeError, TypeError, LookupError) as error:
            check_reached(error, key, "The judge's service", url, "verdicts")
            # the last four: a body of another protocol
            return Reply("failed", detail=error_line(error, key, 500))

    return ask
