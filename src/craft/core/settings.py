"""Settings, checked: unknown keys, wrong types and contradictions are `ConfigError`s.

A config is a YAML file, a dict, dotted overrides (`optimizer.learning_rate=1e-4`), or all three; later ones
win. A preset, if the setting `preset` names one, comes before them all. `craft.training.config`,
`craft.evaluation.config` and `craft.judging.config` list the settings.
"""

import copy
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

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

REMOVED_VALUES = {"search": (("gram", "rerank"), "use exact, or auto, which takes fused on a GPU.")}
"""Values that a setting had in an earlier version, by its dotted name, and what to use instead."""


class Section(BaseModel):
    """A group of settings; strict, frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_assignment=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, tree: Any) -> Any:
        """Sections that set only some of their keys, with the other defaults that they have in this model."""
        if not isinstance(tree, Mapping):
            return tree
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return _over(defaults, tree)

    @model_validator(mode="before")
    @classmethod
    def _as_lists(cls, tree: Any) -> Any:
        """One text is a list of one, and None an empty list, if the setting takes several texts."""
        if not isinstance(tree, dict):
            return tree
        several = {name for name, field in cls.model_fields.items() if _takes_texts(field.annotation)}
        return {name: _as_list(value) if name in several else value for name, value in tree.items()}


class Settings(Section):
    """All settings of one verb.

    Attributes:
        flags: flags of the verb that are not settings; a config file that names one is refused.
        presets: the folder of the files that the setting `preset` can name, if there is such a setting.
    """

    flags: ClassVar[tuple[str, ...]] = ("resume", "overwrite", "dry_run", "json")
    presets: ClassVar[Path | None] = None

    @classmethod
    def build(
        cls: type[S],
        config: "Settings | Mapping[str, Any] | str | Path | None" = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> S:
        """A checked config from a file, dict or config, with overrides on top.

        Args:
            config: a YAML file, a dict (nested, or named as overrides are), a config of this kind, or None
                for the defaults.
            overrides: by dotted name ("optimizer.learning_rate"), with `__` for the dot, or by its last
                names, if they are unique ("learning_rate"). A value for a section with a `name` ("data") is
                its name. Strings are read as YAML if the setting does not take text; a `Path` is its text.

        Raises:
            ConfigError: a key is unknown, ambiguous or removed, a value has the wrong type or range, or the
                file is missing or not YAML.
        """
        complete = config.model_dump() if isinstance(config, Settings) else {}
        tree: dict[str, Any] = copy.deepcopy(complete)
        entries: dict[str, Any] = {}
        if not complete:
            entries = read_yaml(Path(config)) if isinstance(config, str | Path) else dict(config or {})
        for name, value in (*entries.items(), *(overrides or {}).items()):
            _put(cls, tree, str(name), value)
        tree = without_idle(tree)
        if complete and (changed := _presets(tree).items() - _presets(complete).items()):
            name, preset = min(changed)
            raise ConfigError(
                f"{name}={preset} comes too late: the config has a value for every setting, which precede "
                "those of a preset. Name the preset where the config is built."
            )
        tree = _with_presets(cls, tree)
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


def _over(defaults: Mapping[str, Any], tree: Mapping[Any, Any]) -> dict[Any, Any]:
    """`tree`, in which every section that is a mapping is merged over its default, at any depth."""
    complete: dict[Any, Any] = {}
    for name, value in tree.items():
        default = defaults.get(name)
        if isinstance(default, Section) and isinstance(value, Mapping):
            complete[name] = {**dict(default), **_over(dict(default), value)}
        else:
            complete[name] = value
    return complete


def _presets(tree: Mapping[str, Any]) -> dict[str, str]:
    """The presets that settings name, by the dotted name of the setting."""
    return {
        name: value for name, value in flat(tree).items() if value and name.rpartition(".")[2] == "preset"
    }


def _with_presets(model: type[BaseModel], tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` over the settings of the presets that it names, in its sections too."""
    if tree.get("preset") is not None and (folder := getattr(model, "presets", None)) is not None:
        tree = _merged(read_preset(folder, tree["preset"]), tree)
    for name, field in model.model_fields.items():
        if _is_section(field.annotation) and isinstance(tree.get(name), dict):
            tree = {**tree, name: _with_presets(cast("type[BaseModel]", field.annotation), tree[name])}
    return tree


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings; those of `above` precede."""
    both = below.keys() & above.keys()
    inner = {key for key in both if isinstance(below[key], Mapping) and isinstance(above[key], Mapping)}
    return {**below, **above, **{key: _merged(below[key], above[key]) for key in inner}}


def read_preset(folder: Path, name: str) -> dict[str, Any]:
    """The settings of a preset.

    Raises:
        ConfigError: there is none of that name; the message names those that there are.
    """
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in names:
        raise ConfigError(f"There is no preset {name!r}; there is: {', '.join(names)}.")
    return read_yaml(folder / f"{name}.yaml")


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings."""
    for name, field in model.model_fields.items():
        if _is_section(field.annotation):
            yield from leaves(cast("type[BaseModel]", field.annotation), f"{prefix}{name}.")
        else:
            yield prefix + name


def resolve_name(name: str, model: type[BaseModel]) -> str:
    """The dotted name of the setting or section that an override means (see `Settings.build`).

    Raises:
        ConfigError: no setting, or several, have that name, or it was removed; the message says which come
            near, or what to use instead.
    """
    known = list(leaves(model))
    dotted = _dotted(name)
    if removed := _removed_name(name):
        raise ConfigError(f"The setting {removed!r} was removed: {REMOVED[removed].instead}")
    sections = {k[:end] for k in known for end, letter in enumerate(k) if letter == "."}
    if dotted in known or dotted in sections:
        return dotted
    by_last = [k for k in (*known, *sorted(sections)) if k.endswith(f".{dotted}")]
    if len(by_last) == 1:
        return by_last[0]
    if by_last:
        raise ConfigError(f"The setting {name!r} is ambiguous; say {' or '.join(by_last)}.")
    if dotted in getattr(model, "flags", ()):
        flag = dotted.replace("_", "-")
        raise ConfigError(f"{name!r} is a flag and no setting; give --{flag} on the command line.")
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
        elif dotted in REMOVED_VALUES and value in REMOVED_VALUES[dotted][0]:
            faults.append(f"The setting {dotted!r} cannot be {value!r} any more: {REMOVED_VALUES[dotted][1]}")
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


def _put(model: type[BaseModel], tree: dict[str, Any], name: str, value: Any) -> None:
    """Set one entry of a file, dict or overrides in the nested `tree`."""
    dotted = _removed_name(name) or resolve_name(name, model)
    kind = _kind(model, dotted)
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if _is_section(kind) and isinstance(value, Mapping):
        for key, item in value.items():
            _store(tree, f"{dotted}.{key}", _numbers(item, _kind(kind, str(key))))
        return
    if _is_section(kind) and "name" in kind.model_fields:
        dotted, kind = f"{dotted}.name", kind.model_fields["name"].annotation
    _store(tree, dotted, _value(value, kind))


def _store(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for key in path:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{key!r} is a section of settings, not a value ({below!r}).")
        tree = below
    tree[last] = value


def _kind(model: Any, dotted: str) -> Any:
    """The type of a setting, the class of a section, or None for a name that the model lacks."""
    for part in dotted.split("."):
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            return None
        model = fields[part].annotation
    return model


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _takes_text(kind: Any) -> bool:
    """Whether a setting is a text, so that "1e3" or "no" stays one."""
    if get_origin(kind) is tuple:
        return False
    return str in (kind, *get_args(kind)) or get_origin(kind) is Literal


def _takes_texts(kind: Any) -> bool:
    """Whether a setting is a list of texts."""
    return get_origin(kind) is tuple and str in get_args(kind)


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value or ()


def _value(value: Any, kind: Any) -> Any:
    """A value for a setting of this kind: texts of other kinds are read as YAML, and so is a "[list]"."""
    if isinstance(value, list | tuple):
        return [str(item) if isinstance(item, Path) else item for item in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str) or _takes_text(kind):
        return value
    if _takes_texts(kind) and not value.lstrip().startswith("["):
        return value
    import yaml

    try:
        return _numbers(yaml.safe_load(value))
    except yaml.YAMLError:
        return value


def _numbers(value: Any, kind: Any = None) -> Any:
    """YAML 1.1 reads 1e-4 as text; a number is meant, unless a setting of this kind takes text."""
    if isinstance(value, Mapping):
        return {key: _numbers(item, _kind(kind, str(key))) for key, item in value.items()}
    number = isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value)
    return float(value) if number and not (_takes_text(kind) or _takes_texts(kind)) else value


def read_yaml(path: Path) -> dict[str, Any]:
    """The entries of a config file.

    Raises:
        ConfigError: the file cannot be read, or is not a YAML file of `name: value`.
    """
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
