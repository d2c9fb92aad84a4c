"""Manifests and weights of CRAFT's layouts: read, cast, and checked with messages about what does not fit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from craft.core.errors import CheckpointError
from craft.core.files import read_json
from craft.core.records import Record, Size, check_record
from craft.models.image_lora import ImageLora, Scope

M = TypeVar("M", bound=nn.Module)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Codebook(Record):
    fingerprint: str = Field(min_length=1)
    levels: int = Field(ge=0, le=1000)
    size: int = Field(ge=0, le=2**31)
    dim: Size


class _Data(Record):
    """The record of `craft.recipes.questions.describe`, or less in an artefact that other code wrote."""

    name: str | None = None
    fingerprint: str | None = None
    seed: int | None = None
    settings: dict[str, Any] | None = None
    task: str | None = None
    domain: str | None = None
    licence: str | None = None
    source: str | None = None
    classes: list[str] | None = None
    question: str | None = None
    caveats: list[str] | None = None

    @model_validator(mode="after")
    def _whole(self) -> "_Data":
        if self.settings is not None and None in (self.name, self.fingerprint, self.seed):
            raise ValueError("settings need name, fingerprint and seed")
        return self


class _Config(Record):
    surrogate: str | None = None


class _Metrics(Record):
    steps: int | None = None
    best_validation: float | None = Field(default=None, ge=0, le=1)


class _Native(Record):
    visual: Literal["../visual"]
    codebook: str
    prompt: str
    dtype: str
    llm: str | None = Field(default=None, min_length=1)
    lora_scope: Scope = "all"


class _Visual(Record):
    vision_tower: dict[str, Any]
    levels: int = Field(ge=0, le=1000)
    aspect: str
    dtype: str
    fingerprint: str
    codewords: str | None = None


class _Encoder(Record):
    codebook: _Codebook
    vision_tower: dict[str, Any]
    tower: str
    log_temperature: float | None = Field(default=None, ge=-80, le=80)
    surrogate: str | None = None
    base_tower: str | None = None
    data: _Data | None = None
    held_out: list[str] | None = None
    config: _Config | None = None
    metrics: _Metrics | None = None
    seed: int | None = None
    made_with: dict[str, Any] | None = None
    answer_temperature: float | None = Field(default=None, gt=0, le=1000)
    typical_score: float | None = Field(default=None, le=0, allow_inf_nan=False)
    departures: dict[str, Any] | None = None


class _Tuned(_Encoder):
    parts: list[Literal["vision_tower", "projector", "llm"]] = Field(min_length=1)
    base: dict[str, str]
    method: str | None = None


_KINDS: dict[str, type[Record]] = {
    "craft-native": _Native,
    "craft-visual": _Visual,
    "craft-encoder": _Encoder,
    "craft-tuned": _Tuned,
}


def read_manifest(path: Path, kind: str, version: int, what: str) -> dict[str, Any]:
    """Read a `craft.json` or `config.json` and check its format, version and entries.

    Args:
        kind: the expected `format`.
        version: the newest version that this code reads.
        what: what the file describes, for messages, such as "a backbone".

    Raises:
        CheckpointError: the file is missing, is not JSON, has another format or a newer version, or an entry
            is missing or of another type.
    """
    manifest = read_json(path)
    stated = manifest.get("format") if isinstance(manifest, dict) else None
    if stated != kind:
        raise CheckpointError(f"{path} is not {what}: its format is {stated!r} instead of {kind!r}.")
    if type(manifest.get("version")) is not int or not 1 <= manifest["version"] <= version:
        raise CheckpointError(
            f"{path} has format version {manifest.get('version')!r}, and this CRAFT reads up to "
            f"{version}; update CRAFT."
        )
    return check_record(_KINDS[kind], manifest, path)


def format_of(path: Path) -> str | None:
    """The `format` that a JSON file states; None if there is no file, or it states none.

    Raises:
        CheckpointError: the file cannot be read.
    """
    content = read_json(path) if path.is_file() else None
    stated = content.get("format") if isinstance(content, dict) else None
    return stated if isinstance(stated, str) else None


def stored_dtype(module: nn.Module, default: str = "bfloat16") -> str:
    """The dtype in which `module` was read from disk and will be saved; `default` for a new module."""
    return str(getattr(module, "stored_dtype", default))


def dtype_named(name: object, where: Path) -> torch.dtype:
    """The floating-point type with a name in a config file.

    Raises:
        CheckpointError: the name is unknown; the message names `where`.
    """
    if not isinstance(name, str) or name not in _DTYPES:
        raise CheckpointError(f"{where} names dtype {name!r}; this version reads {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floating-point tensors in `dtype`; other tensors as they are."""
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, by their names without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def build_with(make: Callable[[], M], state: Mapping[str, Tensor], where: Path) -> M:
    """A new module with the weights `state`.

    Names and shapes are compared before memory is allocated, because the sizes in a config may be anything.

    Args:
        make: builds the module from its config.

    Raises:
        CheckpointError: as `load_strict`, or as `make`.
    """
    with torch.device("meta"):
        _check_state(make().state_dict(), state, where)
    module = make()
    load_strict(module, state, where)
    return module


def load_strict(module: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Copy `state` into `module`. Names and shapes must agree; the module's dtypes and device stay.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape, or has integers instead of
            floating-point numbers; the message names `where`.
    """
    _check_state(module.state_dict(), state, where)
    module.load_state_dict(dict(state))


def _check_state(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: Path) -> None:
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is not known" for name in state if name not in expected]
    for name in [name for name in expected if name in state]:
        tensor, wanted = state[name], expected[name]
        if tensor.shape != wanted.shape:
            wrong.append(f"{name} has shape {list(tensor.shape)} instead of {list(wanted.shape)}")
        elif tensor.is_floating_point() != wanted.is_floating_point():
            wrong.append(f"{name} has dtype {tensor.dtype} instead of {wanted.dtype}")
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise CheckpointError(
            f"{where} does not fit its config ({shown}); it is damaged or from another model: "
            "copy the whole folder again."
        )


@torch.no_grad()
def add_factors(llm: nn.Module, lora: Mapping[str, Tensor], where: Path, scope: Scope = "all") -> None:
    """Add LoRA to every linear map with factors in `lora`.

    Args:
        llm: the LLM, which is changed.
        lora: factors `M.A` `[r, in]` and `M.B` `[out, r]`.
        where: their file, for messages.
        scope: "all" changes W to W + B A (float32, rounded once); "image" keeps W (`ImageLora`).

    Raises:
        CheckpointError: a factor is missing, or of another shape than the LLM's weight.
    """
    weights = dict(llm.named_parameters())
    for name in sorted({key.rpartition(".")[0] for key in lora}):
        weight, a, b = weights.get(f"{name}.weight"), lora.get(f"{name}.A"), lora.get(f"{name}.B")
        module = llm.get_submodule(name) if weight is not None else None
        if (
            (weight is None or a is None or b is None or not a.ndim == b.ndim == 2)
            or ((b.shape[0], a.shape[1]) != weight.shape or b.shape[1] != a.shape[0])
            or not isinstance(module, nn.Linear)
        ):
            raise CheckpointError(f"{where} does not fit the LLM at {name}; it is from another model.")
        if scope == "all":
            weight.copy_((weight.float() + b.float() @ a.float()).to(weight.dtype))
        else:
            parent, _, child = name.rpartition(".")
            setattr(llm.get_submodule(parent), child, ImageLora(module, a, b))
