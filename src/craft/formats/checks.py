"""Manifests and weights of CRAFT's layouts: read, cast, and checked with messages about what does not fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.errors import CheckpointError
from craft.core.files import read_json

_ENTRIES = {
    "craft-visual": ("vision_tower", "levels", "aspect", "dtype", "fingerprint"),
    "craft-native": ("visual", "codebook", "prompt", "dtype"),
    "craft-encoder": ("codebook", "vision_tower", "tower"),
    "craft-tuned": ("codebook", "vision_tower", "tower", "parts", "base"),
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_manifest(path: Path, kind: str, version: int, what: str) -> dict[str, Any]:
    """Read a `craft.json` or `config.json` and check its format, version and entries.

    Args:
        kind: the expected `format`.
        version: the newest version that this code reads.
        what: what the file describes, for messages, such as "a backbone".

    Raises:
        CheckpointError: the file is missing, is not JSON, has another format or a newer version, or lacks an
            entry.
    """
    manifest = read_json(path)
    stated = manifest.get("format") if isinstance(manifest, dict) else None
    if stated != kind:
        raise CheckpointError(f"{path} is not {what}: its format is {stated!r} instead of {kind!r}.")
    if not isinstance(manifest.get("version"), int) or manifest["version"] > version:
        raise CheckpointError(
            f"{path} has format version {manifest.get('version')!r}, and this CRAFT reads up to "
            f"{version}; update CRAFT."
        )
    missing = [key for key in _ENTRIES[kind] if key not in manifest]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; copy the folder again.")
    return manifest


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


def load_strict(module: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Copy `state` into `module`. Names and shapes must agree; the module's dtypes and device stay.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape; the message names `where`.
    """
    expected = module.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is not known" for name in state if name not in expected]
    wrong += [
        f"{name} has shape {list(state[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise CheckpointError(
            f"{where} does not fit its config ({shown}); it is damaged or from another model: "
            "copy the whole folder again."
        )
    module.load_state_dict(dict(state))


@torch.no_grad()
def add_factors(llm: nn.Module, lora: dict[str, Tensor], where: Path) -> None:
    """Change W to W + B A in place, for every linear map with factors in `lora`; float32, rounded once.

    Raises:
        CheckpointError: a factor is missing, or of another shape than the LLM's weight.
    """
    weights = dict(llm.named_parameters())
    for name in sorted({key.rpartition(".")[0] for key in lora}):
        weight, a, b = weights.get(f"{name}.weight"), lora.get(f"{name}.A"), lora.get(f"{name}.B")
        fits = weight is not None and a is not None and b is not None and a.ndim == b.ndim == 2
        if not fits or (b.shape[0], a.shape[1]) != weight.shape or b.shape[1] != a.shape[0]:  # type: ignore[union-attr]
            raise CheckpointError(f"{where} does not fit the LLM at {name}; it is from another model.")
        weight.copy_((weight.float() + b.float() @ a.float()).to(weight.dtype))  # type: ignore[union-attr]
