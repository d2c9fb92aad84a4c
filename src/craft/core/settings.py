"""Settings, checked: unknown keys, wrong types and contradictions are `ConfigError`s.

A config is a YAML file, a dict, dotted overrides (`optimizer.learning_rate=1e-4`), or all three; later ones
win. `craft.training.config` defines the settings of training.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from craft.core.errors import ConfigError
from craft.core.files import atomic_write_text
from craft.core.text import flat

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Removed:
    """A setting that an earlier version had.

    Attributes:
        idle: the values at which it changed nothing; they are dropped without a message.
        instead: what to use instead of the others.
    """

    idle: tuple[Any, ...]
    instead: str


@dataclass(frozen=True)
class RemovedValues:
    """Values of a setting that an earlier version had.

    Attributes:
        values: refused now.
        instead: what to use instead.
    """

    values: tuple[Any, ...]
    instead: str


REMOVED = {
    "prefix_cache": Removed((False,), "leave it out; the loss is the same but for rounding."),
    "pixel_cache": Removed((None,), "use workers, which decode ahead, and cache_mib, which keeps images."),
    "pin_memory": Removed((True, False), "leave it out; images go to a GPU from page-locked memory."),
    "keep_least": Removed((1.0,), "leave it out; rows keep all their image tokens."),
    "fresh": Removed((False,), "leave it out; save random weights with transformers and give that folder."),
    "log_every": Removed((1,), "leave it out; metrics.jsonl has a line for every step."),
    "optimizer.eps": Removed((1e-8,), "leave it out; AdamW's eps is 1e-8."),
}
"""Removed settings by dotted name."""

REMOVED_VALUES = {
    "search": RemovedValues(("gram", "rerank"), "use exact, or auto, which takes fused on a GPU."),
}
"""Removed values by the dotted name of their setting."""


class Section(BaseModel):
    """A group of settings; strict, frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_assignment=True, frozen=True)


class Settings(Section):
    """All settings of one verb."""

    @classmethod
    def build(
        cls: type[S],
        config: "Settings | Mapping[str, Any] | str | Path | None" = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> S:
        """A checked config from a file, dict or config, with overrides on top.

        Args:
            config: a YAML file, a nested dict, a config of this kind, or None for the defaults.
            overrides: by dotted name ("optimizer.learning_rate"), with `__` for the dot, or by a last name
                that is unique ("learning_rate"). Strings are read as YAML where the key does not take text.

        Raises:
            ConfigError: a key is unknown, ambiguous or removed, a value has the wrong type or range, or the
                file is missing or not YAML.
        """
        if isinstance(config, Settings):
            tree = config.model_dump()
        elif isinstance(config, str | Path):
            tree = _numbers(_read_yaml(Path(config)), cls)
        else:
            tree = _numbers(dict(config or {}), cls)
        for name, value in (overrides or {}).items():
            _put(cls, tree, _removed_name(name) or resolve_name(name, cls), value)
        tree = without_idle(tree)
        if fault := removed_fault(tree):
            raise ConfigError(fault)
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(_explain(error, cls)) from None

    def save(self, path: str | Path) -> None:
        """Write every setting as YAML."""
        import yaml

        tree = self.model_dump(mode="json")
        atomic_write_text(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def resolve_name(name: str, model: type[BaseModel]) -> str:
    """The dotted name that an override means (see `Settings.build`).

    Raises:
        ConfigError: no setting, or several, have that name, or it was removed; the message says which come
            near, or what to use instead.
    """
    known = list(leaves(model))
    dotted = _dotted(name)
    if removed := _removed_name(name):
        raise ConfigError(f"The setting {removed!r} was removed: {REMOVED[removed].instead}")
    if dotted in known or dotted in {k.rpartition(".")[0] for k in known}:
        return dotted
    by_last = [k for k in known if k.rpartition(".")[2] == dotted]
    if len(by_last) == 1:
        return by_last[0]
    if by_last:
        raise ConfigError(f"The setting {name!r} is ambiguous; say {' or '.join(by_last)}.")
    raise ConfigError(f"There is no setting {name!r}.{_did_you_mean(dotted, model)}")


def without_idle(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of this or an earlier version, without removed ones at a value at which they did nothing."""
    current: dict[str, Any] = {}
    for name, value in tree.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Mapping):
            section = without_idle(value, f"{dotted}.")
            if section or not value:  # a section that held nothing else keeps its own defaults
                current[name] = section
        elif dotted not in REMOVED or value not in REMOVED[dotted].idle:
            current[name] = value
    return current


def removed_fault(tree: Mapping[str, Any]) -> str | None:
    """What to use instead of removed settings and values that count in `tree`; None without any."""
    faults = []
    for dotted, value in flat(tree).items():
        if dotted in REMOVED:
            faults.append(
                f"The setting {dotted!r} was removed (here it is {value!r}): {REMOVED[dotted].instead}"
            )
        elif dotted in REMOVED_VALUES and value in REMOVED_VALUES[dotted].values:
            faults.append(
                f"The setting {dotted!r} cannot be {value!r} any more: {REMOVED_VALUES[dotted].instead}"
            )
    return " ".join(faults) or None


def _dotted(name: str) -> str:
    """The dotted name of an override."""
    return name.replace("__", ".").replace("-", "_")


def _removed_name(name: str) -> str | None:
    """The removed setting that an override means, by its dotted or its last name."""
    dotted = _dotted(name)
    return next((removed for removed in REMOVED if dotted in (removed, removed.rpartition(".")[2])), None)


def _did_you_mean(name: str, model: type[BaseModel]) -> str:
    known = list(leaves(model))
    near = difflib.get_close_matches(name, known, 1, 0.6)
    if not near:
        lasts = {k.rpartition(".")[2]: k for k in known}
        near = [lasts[k] for k in difflib.get_close_matches(name.rpartition(".")[2], lasts, 1, 0.6)]
    return f" Did you mean {near[0]!r}?" if near else f" The settings are: {', '.join(known)}."


def _put(model: type[BaseModel], tree: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for key in path:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{key!r} is a section of settings, not a value ({below!r}).")
        tree = below
    tree[last] = _parsed(value) if isinstance(value, str) and not _takes_text(model, dotted) else value


def _takes_text(model: type[BaseModel], dotted: str) -> bool:
    """Whether a setting is a text, so that "1e3" or "no" stays one."""
    if dotted in REMOVED:
        return False
    kind: Any = model
    for part in dotted.split("."):
        kind = kind.model_fields[part].annotation
    return _is_text(kind)


def _is_text(kind: Any) -> bool:
    if get_origin(kind) is tuple:
        return False  # a list of texts is written as YAML
    return str in (kind, *get_args(kind)) or get_origin(kind) is Literal


def _parsed(text: str) -> Any:
    import yaml

    try:
        return _numbers(yaml.safe_load(text))
    except yaml.YAMLError:
        return text


def _numbers(value: Any, kind: Any = None) -> Any:
    """YAML 1.1 reads 1e-4 as text; a number is meant, unless a setting of this kind takes text."""
    if isinstance(value, Mapping):
        below = getattr(kind, "model_fields", {})
        return {
            key: _numbers(item, below[key].annotation if key in below else None)
            for key, item in value.items()
        }
    number = isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value)
    return float(value) if number and not _is_text(kind) else value


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror or error}; check it.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold settings as `name: value`, not a {type(tree).__name__}.")
    return tree


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"There is no setting {name!r}.{_did_you_mean(name, model)}")
        else:
            lines.append(f"The setting {name!r} cannot be {item['input']!r}: {item['msg'].lower()}.")
    return " ".join(lines)
