"""Before the words are parsed: dotted settings, and flags that come from a `--config` file."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TUNED = ("adapt", "align", "baseline", "demo", "judge")
"""Verbs whose `--config` is a file of settings; for the others it is a file of their flags."""

_DATA = {"name": "data"}  # other keys of the section `data` are flags of their own name


def expand(tokens: Sequence[str]) -> list[str]:
    """The words as the parser takes them.

    For `adapt`, `align`, `baseline`, `demo` and `judge` a dotted setting, `--losses.commitment.weight 0.2`,
    becomes `--set losses.commitment.weight=0.2`. For the other verbs `--data.answer_with letter` is
    `--answer-with letter`, and each entry of the `--config` file is a flag, unless that flag is among the
    words already.

    Raises:
        ConfigError: the config file is missing or not a YAML file of settings.
    """
    if not tokens or tokens[0].startswith("-"):
        return list(tokens)
    verb = tokens[0]
    words = list(_dotted_as_set(tokens) if verb in TUNED else map(_undotted, tokens))
    return words if verb in TUNED else _with_config(words)


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


def _undotted(token: str) -> str:
    name, equals, value = token.partition("=")
    if name.startswith("--data."):
        key = name.removeprefix("--data.")
        name = f"--{_DATA.get(key, key)}"
    return _dashed(name + equals + value)


def _with_config(tokens: list[str]) -> list[str]:
    """Replace `--config FILE` by the file's entries."""
    at = next((n for n, token in enumerate(tokens) if token.partition("=")[0] == "--config"), None)
    if at is None:
        return tokens
    _, equals, value = tokens[at].partition("=")
    if not equals:
        if at + 1 == len(tokens):
            return tokens  # the parser says that a value is missing
        value = tokens[at + 1]
    rest = tokens[:at] + tokens[at + (1 if equals else 2) :]
    given = {word.partition("=")[0] for word in rest if word.startswith("--")}
    entries = _flags(_read(Path(value)))
    words = [word for flag, item in entries.items() if flag not in given for word in _words(flag, item)]
    return rest + words


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise _mistake(f"cannot read the config {path}: {error.strerror or error}; check it.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _mistake(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, Mapping):
        raise _mistake(f"{path} must hold settings as `name: value`, not a {type(tree).__name__}.")
    return dict(tree)


def _mistake(text: str) -> Exception:
    from craft.core.errors import ConfigError  # late: it imports torch

    return ConfigError(text)


def _flags(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The entries by flag; a section `data` is flattened."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[str(key)] = value
    return {_undotted(f"--{key}"): value for key, value in flat.items()}


def _words(flag: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"{flag}={str(value).lower()}"]
    if isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
        return [flag, *map(str, value)]  # numbers stand behind one flag, as in --price 3 15
    if isinstance(value, list):
        return [f"{flag}={item}" for item in value]
    return [f"{flag}={value}"]
