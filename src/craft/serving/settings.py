"""The settings of `craft serve`; the names are the keys (see `craft.core.settings`).

The descriptions are also the help of the flags with these names, and the text of docs/reference.md.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from craft.core.errors import ConfigError
from craft.core.settings import Settings


class ServeConfig(Settings):
    """Everything `craft serve` needs.

    Attributes:
        model: a shipped model, a folder, or a hub id: the LLM, with its base tower.
        encoder: adapted encoders as NAME=DIR; the model's name and ":NAME" asks the LLM behind one of them.
        encoders: a folder of run folders; each is an encoder under its folder's name, loaded at its first
            use.
        max_encoders: adapted towers in memory at once; the least recently used one is dropped.
        host: the address to listen at; 127.0.0.1 is this machine only.
        port: the port to listen at.
        engine: the address of a vLLM server of the same LLM, started with --enable-prompt-embeds, which then
            answers instead of this process.
        engine_model: the name under which the engine serves the LLM; by default its first one.
        engine_key: a file with the engine's API key; by default the variable CRAFT_ENGINE_KEY.
        allow_url: hosts from which images may be fetched; by default none: images are data URIs.
        keys: a file with the API keys of clients, one in each line; by default the variable CRAFT_API_KEYS,
            with spaces between them; without keys everyone may ask.
        admin_key: a file with the key that adds and removes encoders; by default the variable
            CRAFT_ADMIN_KEY; without one nobody may.
        keep_ratio: share of the visual tokens that the LLM sees, if a request does not say.
        batch_size: answers that are written together.
        window: seconds to wait for further requests while there is room in a batch.
        queue: requests that may wait; more are refused with 429.
        timeout: seconds for a request.
        max_body: MiB of a request.
        max_pixels: pixels of an image.
        max_images: images of a request.
        max_tokens: tokens of an answer.
        max_answers: answers of a request (its n).
        cache_mib: MiB of codes to keep in memory.
        margin: for the model "auto": nats per token by which an image's codes have to be likelier than those
            of a domain's unusual training images; below 0 lets less usual images through.
        llm_bits: hold the LLM in 4 or 8 bits (bitsandbytes).
        device, dtype: as for `craft.load`.
    """

    flags: ClassVar[tuple[str, ...]] = Settings.flags

    model: str | None = None
    encoder: tuple[str, ...] = Field(default=(), strict=False)
    encoders: str | None = None
    max_encoders: int = Field(default=8, ge=1)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    engine: str | None = None
    engine_model: str | None = None
    engine_key: str | None = None
    allow_url: tuple[str, ...] = Field(default=(), strict=False)
    keys: str | None = None
    admin_key: str | None = None
    keep_ratio: float = Field(default=1.0, gt=0, le=1)
    batch_size: int = Field(default=32, ge=1)
    window: float = Field(default=0.005, ge=0)
    queue: int = Field(default=256, ge=1)
    timeout: float = Field(default=120.0, gt=0)
    max_body: int = Field(default=20, ge=1)
    max_pixels: int = Field(default=40_000_000, ge=1)
    max_images: int = Field(default=8, ge=1)
    max_tokens: int = Field(default=1024, ge=1)
    max_answers: int = Field(default=16, ge=1)
    cache_mib: int = Field(default=256, ge=0)
    margin: float = 0.0
    llm_bits: Literal[4, 8] | None = None
    device: str | None = None
    dtype: str | None = None

    def folders(self) -> dict[str, str]:
        """The encoders by name.

        Raises:
            ConfigError: an entry is not NAME=DIR, or a name occurs twice.
        """
        folders: dict[str, str] = {}
        for entry in self.encoder:
            name, equals, folder = entry.partition("=")
            if not (equals and name and folder):
                raise ConfigError(f"--encoder takes NAME=DIR, as in leaves=runs/leaves, not {entry!r}.")
            if name in folders:
                raise ConfigError(f"--encoder names {name!r} twice; give each encoder a name of its own.")
            folders[name] = folder
        return folders


@dataclass(frozen=True)
class Limits:
    """The largest request that the server takes.

    Attributes:
        body: bytes of an image, and of a request's images together.
        pixels: of an image.
        images: of a request.
        tokens: of an answer.
        answers: of a request (`n`).
    """

    body: int = 20 * 2**20
    pixels: int = 40_000_000
    images: int = 8
    tokens: int = 1024
    answers: int = 16


@dataclass(frozen=True)
class Access:
    """Who may ask for what.

    Attributes:
        hosts: from which images are fetched.
        keys: that clients need; none: everyone may ask.
        admin_key: that adds and removes encoders; None: nobody may.
        limits: of a request.
        timeout: seconds for a request.
        keep_ratio: the share of visual tokens that the LLM reads, if a request does not say.
    """

    hosts: frozenset[str] = frozenset()
    keys: tuple[str, ...] = ()
    admin_key: str | None = None
    limits: Limits = field(default_factory=Limits)
    timeout: float = 120.0
    keep_ratio: float = 1.0


def access_of(config: ServeConfig) -> Access:
    """The part of the settings that the front needs, with the keys read.

    Raises:
        ConfigError: a file of keys is missing or empty.
    """
    admin = read_keys(config.admin_key, "CRAFT_ADMIN_KEY", "--admin-key")
    return Access(
        hosts=frozenset(host.lower() for host in config.allow_url),
        keys=read_keys(config.keys, "CRAFT_API_KEYS", "--keys"),
        admin_key=admin[0] if admin else None,
        limits=Limits(
            config.max_body * 2**20,
            config.max_pixels,
            config.max_images,
            config.max_tokens,
            config.max_answers,
        ),
        timeout=config.timeout,
        keep_ratio=config.keep_ratio,
    )


def read_keys(path: str | None, variable: str, flag: str) -> tuple[str, ...]:
    """Keys from a file, one in each line, or from a variable, with spaces between them.

    Raises:
        ConfigError: the file cannot be read, or has no key.
    """
    if path is None:
        return _without_empty(os.environ.get(variable, "").split())
    try:
        keys = _without_empty(Path(path).expanduser().read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{flag} names no file that can be read; it takes a file with a key in each line, not a key."
        ) from error
    if not keys:
        raise ConfigError(f"{flag} {path} has no key; put one into each line.")
    return keys


def _without_empty(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
