"""A model behind a service that writes a text: any server of OpenAI's chat protocol, or Anthropic's.

Timeouts, rate limits and retries are the SDKs'. Keys come from the environment and go to the SDK alone.
"""

import base64
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from craft.core.errors import ConfigError, DataError

CONNECT = 10.0
"""Seconds to wait for a connection: a server that is not there need not be waited for as a slow text is."""

Write = Callable[[str, bytes | None], str]
"""Takes a prompt and a PNG (or None), and returns the text that the model writes."""


@dataclass(frozen=True)
class Service:
    """Which model writes, and where.

    Attributes:
        model: what the service calls it.
        kind: whose protocol; "openai" with a `base_url` is vLLM, llama.cpp, Ollama and their like.
        base_url: another server of the protocol.
        max_tokens: cap on a text.
        timeout: seconds for one attempt.
        retries: further attempts after a rate limit, a timeout or a fault of the server.
        concurrency: calls at once.
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
            ConfigError: the SDK is not installed, there is no key for a service that needs one, or its
                address is none.
        """
        return _openai(self) if self.kind == "openai" else _anthropic(self)


def _openai(given: Service) -> Write:
    sdk, elsewhere = sdk_of("openai"), given.base_url or os.environ.get("OPENAI_BASE_URL")
    key = key_of("OPENAI_API_KEY", needed=not elsewhere)
    client = client_of(sdk, sdk.OpenAI, key or "none", given)
    cap: dict[str, Any] = {"max_tokens" if elsewhere else "max_completion_tokens": given.max_tokens}

    def send(prompt: str, image: bytes | None) -> str:
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if image is not None:
            url = f"data:image/png;base64,{base64.b64encode(image).decode('ascii')}"
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        messages = [{"role": "user", "content": content}]
        answer = client.chat.completions.create(model=given.model, messages=messages, **cap)
        return answer.choices[0].message.content or ""

    return _guarded(send, sdk, key, client)


def _anthropic(given: Service) -> Write:
    sdk, key = sdk_of("anthropic"), key_of("ANTHROPIC_API_KEY", needed=True)
    client = client_of(sdk, sdk.Anthropic, key, given)

    def send(prompt: str, image: bytes | None) -> str:
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if image is not None:
            data = base64.b64encode(image).decode("ascii")
            source = {"type": "base64", "media_type": "image/png", "data": data}
            content.insert(0, {"type": "image", "source": source})
        messages = [{"role": "user", "content": content}]
        said = client.messages.create(model=given.model, max_tokens=given.max_tokens, messages=messages)
        return "".join(block.text for block in said.content if block.type == "text")

    return _guarded(send, sdk, key, client)


def _guarded(send: Write, sdk: Any, key: str | None, client: Any) -> Write:
    """Errors of the SDK become ours: a `DataError` of one call, a `ConfigError` where all would fail."""
    hopeless = (sdk.AuthenticationError, sdk.PermissionDeniedError, sdk.NotFoundError)

    def write(prompt: str, image: bytes | None) -> str:
        try:
            text = " ".join(send(prompt, image).split())
        except hopeless as error:
            raise ConfigError(
                f"The service turns every call down ({told(error, key)}). Check the key, --model and "
                "--base-url; the texts so far are kept."
            ) from None
        except (sdk.APIError, ValueError, AttributeError, TypeError, LookupError) as error:
            check_reached(error, key, "The service", str(client.base_url), "texts")
            raise DataError(told(error, key)) from None  # the last four: a body that is not the protocol's
        if not text:
            raise DataError("the model wrote nothing")
        return text

    return write


def client_of(sdk: Any, make: Any, key: str | None, given: Any) -> Any:
    """An SDK's client.

    Args:
        sdk: the SDK's module.
        make: its class.
        key: the key.
        given: has `base_url`, `timeout` and `retries`.

    Raises:
        ConfigError: the address is none.
    """
    timeout = sdk.Timeout(given.timeout, connect=min(CONNECT, given.timeout))
    try:
        return make(api_key=key, base_url=given.base_url, timeout=timeout, max_retries=given.retries)
    except Exception as error:  # of the SDK's HTTP library, which is another in every version
        where = shown_url(given.base_url or "of the environment")
        raise ConfigError(f"--base-url {where} cannot be used ({told(error, key)}). Correct it.") from None


def check_reached(error: Exception, key: str | None, who: str, url: str, kept: str) -> None:
    """Tell an address at which nobody answers from a service that hung up or took too long, which another
    call may find better.

    Args:
        error: the SDK's.
        key: the key, which is not told.
        who, url: whom the call was for, and where.
        kept: what is there already.

    Raises:
        ConfigError: no call can succeed.
    """
    cause = error.__cause__
    if type(cause).__name__ in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol", "ProxyError"):
        why = f"{told(error, key)} {told(cause, key)}"  # type: ignore[arg-type]
        raise ConfigError(
            f"{who} at {shown_url(url)} cannot be reached ({why}). Check that it runs, the network, and "
            f"--base-url (its port, and whether it ends in /v1). The {kept} so far are kept; the same "
            "command goes on."
        ) from None


def told(error: Exception, key: str | None, most: int = 300) -> str:
    """An error in one line of at most so many characters, in which the key is not."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return (text.replace(key, "(the key)") if key else text)[:most]


def shown_url(url: str) -> str:
    """An address without what may be secret in it: a password, and what stands behind "?"."""
    return re.sub(r"(?<=//)[^/@]*@|\?.*", "", url)


def sdk_of(name: str, who: str = "This", instead: str = "") -> Any:
    """The package of a service.

    Raises:
        ConfigError: it is not installed; `who` needs it, `instead` is another way.
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
        ConfigError: it is needed and not set.
    """
    key = os.environ.get(name, "").strip()
    if needed and not key:
        raise ConfigError(f"{who} needs a key in the environment variable {name}; none is set.")
    return key or None
