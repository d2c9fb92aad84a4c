"""Models of a service that write texts: any server of OpenAI's chat protocol, or Anthropic's.

The SDKs handle timeouts, rate limits and retries. Keys come from the environment and go to the SDK alone.
"""

import base64
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from craft.core.errors import ConfigError, DataError
from craft.core.text import one_line

CONNECT = 10.0
"""Seconds to wait for a connection; a slow text may take longer than a server takes to answer."""

PATIENCE = 8
"""After this many calls in a row that brought nothing usable, CRAFT asks no further."""

Write = Callable[[str, bytes | None], str]
"""Takes a prompt and a PNG (or None), and returns the text that the model writes."""


@dataclass(frozen=True)
class Service:
    """Which model writes, and where it runs.

    Attributes:
        model: the service's name for it.
        kind: the protocol; "openai" with a `base_url` also serves vLLM, llama.cpp, Ollama and the like.
        base_url: another server of the protocol.
        max_tokens: the most tokens of a text.
        timeout: seconds for one attempt.
        retries: further attempts after a rate limit, a timeout or a server error.
        concurrency: calls at the same time.
    """

    model: str
    kind: Literal["openai", "anthropic"] = "openai"
    base_url: str | None = None
    max_tokens: int = 200
    timeout: float = 120.0
    retries: int = 5
    concurrency: int = 4

    def start(self) -> Write:
        """Connect.

        Raises:
            ConfigError: the SDK is not installed, a needed key is missing, or the address is not valid.
        """
        return _openai(self) if self.kind == "openai" else _anthropic(self)


def _openai(service: Service) -> Write:
    sdk, other_server = sdk_of("openai"), service.base_url or os.environ.get("OPENAI_BASE_URL")
    key = key_of("OPENAI_API_KEY", needed=not other_server)
    client = client_of(sdk, sdk.OpenAI, key or "none", service)
    cap = {"max_tokens" if other_server else "max_completion_tokens": service.max_tokens}

    def send(prompt: str, image: bytes | None) -> str:
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if image is not None:
            url = f"data:image/png;base64,{base64.b64encode(image).decode('ascii')}"
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        messages = [{"role": "user", "content": content}]
        answer = client.chat.completions.create(model=service.model, messages=messages, **cap)
        message = choice_of(answer).message
        if not message.content and message.refusal:
            raise UnusableReply(f"the model refused: {message.refusal}")
        return message.content or ""

    return _guarded(send, sdk, key, client)


def _anthropic(service: Service) -> Write:
    sdk, key = sdk_of("anthropic"), key_of("ANTHROPIC_API_KEY", needed=True)
    client = client_of(sdk, sdk.Anthropic, key, service)

    def send(prompt: str, image: bytes | None) -> str:
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if image is not None:
            data = base64.b64encode(image).decode("ascii")
            source = {"type": "base64", "media_type": "image/png", "data": data}
            content.insert(0, {"type": "image", "source": source})
        messages = [{"role": "user", "content": content}]
        answer = client.messages.create(model=service.model, max_tokens=service.max_tokens, messages=messages)
        return written_in(answer)

    return _guarded(send, sdk, key, client)


def _guarded(send: Write, sdk: Any, key: str | None, client: Any) -> Write:
    """Turn errors of the SDK into a `DataError` of one call, or a `ConfigError` if all calls would fail."""
    hopeless = (sdk.AuthenticationError, sdk.PermissionDeniedError, sdk.NotFoundError)

    def write(prompt: str, image: bytes | None) -> str:
        try:
            text = " ".join(send(prompt, image).split())
        except hopeless as error:
            raise ConfigError(
                f"The service refuses every call ({error_line(error, key)}). Check the key, --model and "
                "--base-url; the texts written so far are safe."
            ) from None
        except (sdk.APIError, ValueError, AttributeError, TypeError, LookupError) as error:
            check_reached(error, key, "The service", str(client.base_url), "texts")
            raise DataError(error_line(error, key)) from None  # the last four: a body of another protocol
        if not text:
            raise DataError("the model wrote nothing")
        return text

    return write


class UnusableReply(ValueError):
    """A reply with HTTP status 200 that is an error; the message contains the server's words."""


def choice_of(answer: Any) -> Any:
    """The first choice of a reply in OpenAI's protocol.

    Raises:
        UnusableReply: the body is an error, or of another protocol.
    """
    choices = getattr(answer, "choices", None)
    if not choices or _error_in(choices[0]):
        raise UnusableReply(_words_of(choices[0] if choices else answer))
    return choices[0]


def written_in(answer: Any) -> str:
    """The text of a reply in Anthropic's protocol.

    Raises:
        UnusableReply: the body is an error, or of another protocol.
    """
    if getattr(answer, "content", None) is None:
        raise UnusableReply(_words_of(answer))
    return "".join(block.text for block in answer.content if block.type == "text")


def _error_in(body: Any) -> Any:
    """What a body that an SDK has parsed says is wrong; None if it says nothing."""
    names = ("error", "errors", "detail", "message")
    extra = getattr(body, "model_extra", None) or {}
    return next((extra[name] for name in names if extra.get(name)), None)


def _words_of(body: Any) -> str:
    error = _error_in(body)
    if error is None:
        shown = body.model_dump(exclude_none=True) if hasattr(body, "model_dump") else body
        return f"HTTP status 200, but no reply of this protocol: {shown}"
    words = (error.get("message") or error) if isinstance(error, dict) else error
    return f"HTTP status 200 with an error: {words}"


def client_of(sdk: Any, make: Any, key: str | None, service: Any) -> Any:
    """An SDK's client.

    Raises:
        ConfigError: the address is not valid.
    """
    timeout = sdk.Timeout(service.timeout, connect=min(CONNECT, service.timeout))
    try:
        return make(api_key=key, base_url=service.base_url, timeout=timeout, max_retries=service.retries)
    except Exception as error:  # from the SDK's HTTP library, which differs between versions
        url = shown_url(service.base_url or "of the environment")
        raise ConfigError(
            f"--base-url {url} cannot be used ({error_line(error, key)}). Correct it."
        ) from None


def check_reached(error: Exception, key: str | None, who: str, url: str, finished: str) -> None:
    """Distinguish an address at which nothing answers from a service that broke one call off or took too
    long.

    Args:
        error: the SDK's.
        key: the key, which stays out of the message.
        who, url: what was called, and where.
        finished: what exists already ("texts").

    Raises:
        ConfigError: no call can succeed.
    """
    cause = error.__cause__
    if type(cause).__name__ in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol", "ProxyError"):
        why = f"{error_line(error, key)} {error_line(cause, key)}"  # type: ignore[arg-type]
        raise ConfigError(
            f"{who} at {shown_url(url)} cannot be reached ({why}). Check that it runs, the network, and "
            f"--base-url (its port, and whether it ends in /v1). The {finished} so far are safe; the same "
            "command continues."
        ) from None


def error_line(error: Exception, key: str | None, most: int = 300) -> str:
    """An error in one line of at most `most` characters, without the key."""
    text = f"{type(error).__name__}: {error}"
    return one_line(text.replace(key, "(the key)") if key else text, most)


def shown_url(url: str) -> str:
    """An address without its secret parts: a password, and everything after "?"."""
    return re.sub(r"(?<=//)[^/@]*@|\?.*", "", url)


def sdk_of(name: str, who: str = "This", instead: str = "") -> Any:
    """The package of a service.

    Raises:
        ConfigError: it is not installed; the message says who needs it, and the alternative `instead`.
    """
    try:
        return import_module(name)
    except ImportError:
        raise ConfigError(
            f"{who} needs the package {name}: pip install 'craft-vlm[judge]'{instead}."
        ) from None


def key_of(name: str, needed: bool, who: str = "This") -> str | None:
    """The key in an environment variable, or None.

    Raises:
        ConfigError: it is needed, but not set.
    """
    key = os.environ.get(name, "").strip()
    if needed and not key:
        raise ConfigError(f"{who} needs a key in the environment variable {name}; none is set.")
    return key or None
