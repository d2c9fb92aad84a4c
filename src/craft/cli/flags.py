"""Flags that come from a class of settings, so that each name, default and description is written once.

A verb with `takes` has a parameter `flags`, a dataclass with one flag for each setting: the setting's last
name, or the section's name for its `name`.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import field, fields, is_dataclass, make_dataclass
from inspect import signature
from typing import Annotated, Any, TypeVar, get_args, get_origin

from cyclopts import Parameter, validators

from craft.cli.options import Common, Flag, settings_of
from craft.core.settings import Section, Settings

F = TypeVar("F", bound=Callable[..., Any])

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
