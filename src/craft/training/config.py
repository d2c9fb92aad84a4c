"""Every setting of an adaptation, checked: unknown keys, wrong types and contradictions are `ConfigError`s.

A config is a YAML file, a dict, dotted overrides (`optimizer.learning_rate=1e-4`), or all three; later ones
win. The names below are the keys.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from craft.core.errors import ConfigError
from craft.core.files import atomic_write_text


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, validate_assignment=True, frozen=True)


class DataConfig(_Section):
    """Which data, and how its questions are written (see `craft.data.load_data`).

    Attributes:
        name: an embedded domain, a folder of class folders, or a JSONL file.
        root: folder that relative paths start from.
        answer_with: "option" (its text) or "letter".
        distractors: "random", or "hard": similar texts under the frozen text encoder.
        unseen_fraction: share of the classes held out of training (§4.1: 0.2).
        limit: at most this many samples in each split.
    """

    name: str = "apparel"
    root: str | None = None
    answer_with: Literal["letter", "option"] = "option"
    distractors: Literal["random", "hard"] = "random"
    unseen_fraction: float = Field(default=0.2, ge=0, lt=1)
    limit: int | None = Field(default=None, ge=1)


class OptimizerConfig(_Section):
    """AdamW, cosine schedule with warm-up, no weight decay (§4.1); the learning rate is ours.

    Attributes:
        learning_rate: at its peak.
        warmup_ratio: share of the steps that warm up linearly.
        weight_decay, betas, eps: of AdamW.
        max_grad_norm: clip the gradient's norm; None does not clip.
    """

    learning_rate: float = Field(default=3e-4, gt=0)
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = Field(default=(0.9, 0.999), strict=False)
    eps: float = Field(default=1e-8, gt=0)
    max_grad_norm: float | None = Field(default=None, gt=0)


class SalConfig(_Section):
    """Eq. 2. `weight` is 1 in the paper (0 is its ablation); `reduction` over the answer's tokens."""

    weight: float = Field(default=1.0, ge=0)
    reduction: Literal["mean", "sum"] = "mean"


class CommitmentConfig(_Section):
    """Eq. 3. The paper's λ_commit is 0.1 (§4.1), of a reduction that it does not name.

    Attributes:
        weight: λ_commit.
        form: "final" is Eq. 3 (distance to z̃); "cumulative" averages over levels, as VILA-U.
        reduction: over the width d: "sum" is Eq. 3 as printed, "mean" is VILA-U's code, 1/d of it.
    """

    weight: float = Field(default=0.1, ge=0)
    form: Literal["final", "cumulative"] = "final"
    reduction: Literal["mean", "sum"] = "mean"


class ContrastiveConfig(_Section):
    """Eq. 4. `weight` None is the paper's λ_con: 1.0 for classification, 0.1 for VQA (§4.1).

    The default 0 leaves the term out: on craft-tiny λ_con = 1 kept more of the unseen classes but cost more
    on the seen ones than `blend` does (docs/paper_map.md has figures). `temperature` is where τ starts; None is
    the checkpoint's own, which was trained with a bias that Eq. 4 does not have.
    """

    weight: float | None = Field(default=0.0, ge=0)
    temperature: float | None = Field(default=10.0, gt=0)


class LossesConfig(_Section):
    """The three terms of Eq. 5."""

    sal: SalConfig = SalConfig()
    commitment: CommitmentConfig = CommitmentConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()


class AdaptConfig(_Section):
    """Everything `craft adapt` needs.

    Attributes:
        surrogate: a shipped model, a folder or a hub id whose frozen LLM scores the answers.
        out: the run folder.
        seed: of data (held-out classes, options), order, sampled texts.
        data, optimizer, losses: the sections above.
        batch_size: samples per optimiser step, over all devices and accumulation (§4.1: 24).
        accumulation: micro-batches per step. Eq. 4 sees the pairs within a micro-batch.
        max_steps: optimiser steps; None means `epochs` passes over the training set.
        epochs: passes, where `max_steps` is None.
        trainable: "all" of the vision tower, or its "layers" (what pixels enter first stays as it was: the
            convolutional stem of the hybrid tower, the patch embedding of SigLIP).
        blend: 1 keeps the trained tower; less mixes `blend` of it with `1 - blend` of the base tower's
            weights (WiSE-FT). Source: ours, optional.
        eval_every: measure the surrogate on validation samples every so many steps, and keep the best tower
            (the earliest of equals); None trains to the end and keeps the last.
        eval_limit: at most this many validation samples.
        checkpoint_every: steps between resumable checkpoints; None only at the end or when interrupted.
        log_every: steps between lines of metrics.jsonl.
        probe_every: steps between counts of changed codes on a fixed batch; None is a twentieth of the run.
        device, dtype: "auto", or as `craft.core.device` names them; float16 is not offered for training.
        cache_mib: memory for decoded images (with trainable "layers" for the stem's output).
    """

    surrogate: str = "craft-tiny/qwen2"
    out: str | None = None
    seed: int = 0
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    losses: LossesConfig = LossesConfig()
    batch_size: int = Field(default=24, ge=1)
    accumulation: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=200, ge=1)
    epochs: float = Field(default=1.0, gt=0)
    trainable: Literal["all", "layers"] = "layers"
    blend: float = Field(default=0.7, gt=0, le=1)
    eval_every: int | None = Field(default=None, ge=1)
    eval_limit: int | None = Field(default=None, ge=1)
    checkpoint_every: int | None = Field(default=None, ge=1)
    log_every: int = Field(default=1, ge=1)
    probe_every: int | None = Field(default=None, ge=1)
    device: str = "auto"
    dtype: Literal["auto", "float32", "fp32", "bfloat16", "bf16"] = "auto"
    cache_mib: int = Field(default=2048, ge=0)

    @classmethod
    def build(
        cls,
        config: "AdaptConfig | Mapping[str, Any] | str | Path | None" = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> "AdaptConfig":
        """A checked config from a file, dict or config, with overrides on top.

        Args:
            config: a YAML file, a nested dict, an `AdaptConfig`, or None for the defaults.
            overrides: by dotted name ("optimizer.learning_rate"), with `__` for the dot, or by a last name
                that is unique ("learning_rate"). Strings are read as YAML where the key does not take text.

        Raises:
            ConfigError: a key is unknown or ambiguous, a value has the wrong type or range, or the file is
                missing or not YAML.
        """
        if isinstance(config, AdaptConfig):
            tree = config.model_dump()
        elif isinstance(config, str | Path):
            tree = _read_yaml(Path(config))
        else:
            tree = _numbers(dict(config or {}))
        for name, value in (overrides or {}).items():
            _put(tree, resolve_name(name), value)
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(_explain(error)) from None

    def save(self, path: str | Path) -> None:
        """Write every setting as YAML."""
        import yaml

        tree = self.model_dump(mode="json")
        atomic_write_text(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))

    def contrastive_weight(self, task: str) -> float:
        """λ_con for "classification" or "vqa" (§4.1), unless the config names one."""
        given = self.losses.contrastive.weight
        return given if given is not None else (1.0 if task == "classification" else 0.1)

    def steps(self, samples: int) -> int:
        """Optimiser steps for a training set of so many samples."""
        return self.max_steps or max(1, round(self.epochs * samples / self.batch_size))


def leaves(model: type[BaseModel] = AdaptConfig, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def resolve_name(name: str) -> str:
    """The dotted name that an override means (see `AdaptConfig.build`).

    Raises:
        ConfigError: no setting, or several, have that name; the message says which come near.
    """
    known = list(leaves())
    dotted = name.replace("__", ".").replace("-", "_")
    if dotted in known or dotted in {k.rpartition(".")[0] for k in known}:
        return dotted
    by_last = [k for k in known if k.rpartition(".")[2] == dotted]
    if len(by_last) == 1:
        return by_last[0]
    if by_last:
        raise ConfigError(f"The setting {name!r} is ambiguous; say {' or '.join(by_last)}.")
    raise ConfigError(f"There is no setting {name!r}.{_did_you_mean(dotted)}")


def _did_you_mean(name: str) -> str:
    known = list(leaves())
    near = difflib.get_close_matches(name, known, 1, 0.6)
    if not near:
        lasts = {k.rpartition(".")[2]: k for k in known}
        near = [lasts[k] for k in difflib.get_close_matches(name.rpartition(".")[2], lasts, 1, 0.6)]
    return f" Did you mean {near[0]!r}?" if near else f" The settings are: {', '.join(known)}."


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for key in path:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{key!r} is a section of settings, not a value ({below!r}).")
        tree = below
    tree[last] = _parsed(value) if isinstance(value, str) and not _takes_text(dotted) else value


def _takes_text(dotted: str) -> bool:
    return dotted in ("surrogate", "out", "device", "dtype", "data.name", "data.root")


def _parsed(text: str) -> Any:
    import yaml

    try:
        return _numbers(yaml.safe_load(text))
    except yaml.YAMLError:
        return text


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; a number is meant."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return float(value)
    return value


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
    return _numbers(tree)


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"There is no setting {name!r}.{_did_you_mean(name)}")
        else:
            lines.append(f"The setting {name!r} cannot be {item['input']!r}: {item['msg'].lower()}.")
    return " ".join(lines)
