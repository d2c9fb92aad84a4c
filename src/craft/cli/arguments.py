"""Before the words are parsed: dotted settings, and the flags of a `--config` file."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from craft.core.settings import read_yaml
from craft.core.text import flat

PLAIN = ("bench", "compare", "data", "export", "inspect", "prior", "report", "show")
"""Verbs with a few flags and no class of settings: their flags are their settings. `paper` has bench."""


def expand(tokens: Sequence[str]) -> list[str]:
    """The words as the parser takes them.

    A dotted setting, `--losses.commitment.weight 0.2`, becomes `--set losses.commitment.weight=0.2`. For a
    verb of `PLAIN` the entries of `--config` and `--set` become flags, unless that flag is among the words.

    Raises:
        ConfigError: the config file is missing or not a YAML file of settings.
    """
    if not tokens or tokens[0].startswith("-"):
        return list(tokens)
    words = list(_dotted_as_set(tokens))
    return _settings_as_flags(words) if tokens[0] in PLAIN else words


def _dotted_as_set(tokens: Sequence[str]) -> Iterator[str]:
    waiting = list(reversed(tokens))
    while waiting:
        token = waiting.pop()
        name, equals, value = token.partition("=")
        if not (name.startswith("--") and "." in name):
            yield _dashed(token)
            continue
        if not equals and waiting and not waiting[-1].startswith("--"):  # a flag is no value
            value = waiting.pop()
        yield "--set"
        yield f"{name[2:]}={value}"


def _dashed(token: str) -> str:
    """`--max_steps` is `--max-steps`; "~" in `--out=~/runs`, which shells leave alone, is the home folder."""
    name, equals, value = token.partition("=")
    value = os.path.expanduser(value) if value.startswith("~/") else value
    return name.replace("_", "-") + equals + value if name.startswith("--") else token


def _settings_as_flags(words: list[str]) -> list[str]:
    """Replace `--config FILE` and `--set NAME=VALUE` by flags."""
    entries: dict[str, Any] = {}
    others: list[str] = []
    waiting = list(reversed(words))
    while waiting:
        word = waiting.pop()
        name, equals, value = word.partition("=")
        if name not in ("--config", "--set") or not (equals or waiting):
            others.append(word)
            continue
        value = value if equals else waiting.pop()
        setting, _, text = value.partition("=")
        # A file goes below what `--set` says, wherever it stands.
        entries = {**_file(value), **entries} if name == "--config" else {**entries, _flag(setting): text}
    named = {word.partition("=")[0] for word in others}
    return others + [w for flag, value in entries.items() if flag not in named for w in _words(flag, value)]


def _file(path: str) -> dict[str, Any]:
    return {_flag(name): value for name, value in flat(read_yaml(Path(path))).items()}


def _flag(setting: str) -> str:
    """The flag of a setting: its last name; `data.name` is `--data`."""
    return _dashed("--data" if setting == "data.name" else f"--{setting.rpartition('.')[2]}")


def _words(flag: str, value: Any) -> list[str]:
    if value is None or value == "null":
        return []
    if isinstance(value, bool):
        return [f"{flag}={str(value).lower()}"]
    return [f"{flag}={item}" for item in (value if isinstance(value, list) else [value])]
