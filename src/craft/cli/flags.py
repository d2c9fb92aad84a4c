"""Flags and settings: flags made from a class of settings, and settings of the command line made flags.

A verb with `takes` has a parameter `flags`, a dataclass with one flag for each setting (the setting's last
name, or the section's name for its `name`), so that each name, default and description is written once.
Before the words are parsed, `expand` rewrites dotted settings, and `--config` for verbs without such a class.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from cyclopts import Parameter, validators

from craft.cli.options import Common, Flag, settings_of
from craft.core.settings import Section, Settings, read_yaml
from craft.core.text import flat

F = TypeVar("F", bound=Callable[..., Any])

PLAIN = ("bench", "compare", "data", "export", "inspect", "prior", "report", "show")
"""Verbs with a few flags and no class of settings: their flags are their settings. `paper` has bench."""

_COMMON = ("seed", "device", "dtype")  # settings that are flags of every verb
_LIMITS = {"Ge": ("ge", "gte"), "Gt": ("gt", "gt"), "Le": ("le", "lte"), "Lt": ("lt", "lt")}


def takes(kind: type[Settings]) -> Callable[[F], F]:
    """Make the parameter `flags` of a verb a dataclass with the settings of a class, as `flags_of` does.

    Args:
        kind: the class. Settings that are other parameters of the verb get no flag.
    """

    def with_flags(verb: F) -> F:
        form = signature(verb)
        flags = flags_of(kind, {*form.parameters, *_COMMON})
        parameters = [
            parameter.replace(annotation=flags, default=flags()) if name == "flags" else parameter
            for name, parameter in form.parameters.items()
        ]
        verb.__dict__["__signature__"] = form.replace(parameters=parameters)
        verb.__annotations__["flags"] = flags
        return verb

    return with_flags


def config_of(kind: Any, flags: Any, common: Common, **arguments: Any) -> Any:
    """The settings of a verb: the config file, `--set` on top of it, and flags on top of both.

    Args:
        kind: the class of the settings.
        flags: as `flags_of` makes them; None without any.
        common: of the command line.
        arguments: settings that are parameters of the verb itself.

    Raises:
        ConfigError: a setting is unknown or impossible.
    """
    named = dict(_given(flags)) | {name: value for name, value in arguments.items() if value is not None}
    if common.seed is not None:
        named["seed"] = common.seed
    if "seeds" in kind.model_fields and ("seed" in named) != ("seeds" in named):
        named |= {"seeds": ()} if "seed" in named else {"seed": None}  # the file may have the other one
    return kind.build(common.config, {**settings_of(common), **named})


def flags_of(kind: Any, without: Collection[str]) -> Any:
    """A dataclass with a flag for each setting of a class; None (or False) is a flag that is not given.

    Settings of a section that is a whole `Settings` (those of another verb) are left to `--set`.

    Args:
        kind: the class of the settings; its docstring describes the flags.
        without: names of settings that get no flag.
    """
    inherited = [name for name in kind.model_fields if name in kind.__base__.model_fields]
    entries: list[Any] = []
    for name in sorted(kind.model_fields, key=inherited.__contains__):  # these last
        setting = kind.model_fields[name]
        section = setting.annotation
        if name in without:
            continue
        if not (isinstance(section, type) and issubclass(section, Section)):
            entries.append((name, *_flag(setting)))
        elif not issubclass(section, Settings):
            below = _section_flags(section, name)
            entries.append((name, below, field(default_factory=below)))
    return _dataclass(kind, entries)


def _section_flags(section: Any, name: str) -> Any:
    entries = [
        (key, *_flag(setting, f"--{name}" if key == "name" else None))
        for key, setting in section.model_fields.items()
    ]
    return _dataclass(section, entries)


def _dataclass(kind: Any, entries: list[Any]) -> Any:
    namespace = {"__module__": __name__, "__doc__": kind.__doc__}  # of no module it would count as built in
    made = make_dataclass(f"{kind.__name__}Flags", entries, frozen=True, namespace=namespace)
    return Parameter(name="*")(made)


def _flag(setting: Any, name: str | None = None) -> tuple[Any, Any]:
    """The type of a flag, with what the parser has to know about it, and its value if it is not given."""
    hint = setting.annotation
    if hint is bool:
        return Annotated[Flag, Parameter(name=name)], False
    options: dict[str, Any] = {"name": name, "negative": "", "show_default": _default(setting.default)}
    numbers = {
        limit: getattr(item, attribute)
        for item in setting.metadata
        for attribute, limit in [_LIMITS.get(type(item).__name__, ("", ""))]
        if limit
    }
    if numbers:
        options["validator"] = validators.Number(**numbers)
    if any(type(item).__name__ == "BeforeValidator" for item in setting.metadata):
        hint = str  # the setting reads what is written
    elif get_origin(hint) is tuple and Ellipsis in get_args(hint):
        hint, options["consume_multiple"] = list[get_args(hint)[0]], True
    return Annotated[hint | None, Parameter(**options)], None


def _default(value: Any) -> Any:
    """How `--help` shows a default."""
    return False if value is None or value == () else lambda _: str(value)


def _given(flags: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names and values of the flags that are given."""
    for item in fields(flags) if flags is not None else ():
        value = getattr(flags, item.name)
        if is_dataclass(value):
            yield from _given(value, f"{prefix}{item.name}.")
        elif value is not None and value is not False:
            yield prefix + item.name, value


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
    if tokens[0] == "ask":  # standard input; the parser takes a bare hyphen for a flag
        words = ["/dev/stdin" if word == "-" else word for word in words]
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
        if name == "--config":  # below what `--set` says, wherever it stands
            file = flat(read_yaml(Path(value)))
            entries = {_named_flag(name): item for name, item in file.items()} | entries
        else:
            setting, _, text = value.partition("=")
            entries[_named_flag(setting)] = text
    named = {word.partition("=")[0] for word in others}
    return others + [w for flag, value in entries.items() if flag not in named for w in _words(flag, value)]


def _named_flag(setting: str) -> str:
    """The flag of a setting: its last name; `data.name` is `--data`."""
    return _dashed("--data" if setting == "data.name" else f"--{setting.rpartition('.')[2]}")


def _words(flag: str, value: Any) -> list[str]:
    if value is None or value == "null":
        return []
    if isinstance(value, bool):
        return [f"{flag}={str(value).lower()}"]
    return [f"{flag}={item}" for item in (value if isinstance(value, list) else [value])]
