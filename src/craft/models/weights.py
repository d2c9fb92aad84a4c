"""Weights on their way between modules and files: casts, and loading that says what does not fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.errors import CheckpointError
from craft.core.files import read_json

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ENTRIES = {
    "craft-visual": ("vision_tower", "levels", "aspect", "dtype", "fingerprint"),
    "craft-native": ("visual", "codebook", "prompt", "dtype"),
    "craft-encoder": ("codebook", "vision_tower", "tower"),
    "craft-tuned": ("codebook", "vision_tower", "tower", "parts", "base"),
}


def stored_dtype(module: nn.Module, default: str = "bfloat16") -> str:
    """The dtype in which `module` was read from disk and is written again; `default` for a new one."""
    return str(getattr(module, "stored_dtype", default))


def dtype_named(name: object, where: Path) -> torch.dtype:
    """The floating-point type that a config file names.

    Raises:
        CheckpointError: it names another type.
    """
    if not isinstance(name, str) or name not in _DTYPES:
        raise CheckpointError(f"{where} names dtype {name!r}; this version reads {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floating-point tensors in `dtype`; other tensors as they are."""
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_strict(module: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Copy `state` into `module`: every tensor of both, each of the right shape; dtype and device stay.

    Raises:
        CheckpointError: something is missing, left over or of another shape; the message names `where`.
    """
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is not known" for name in state if name not in own]
    wrong += [
        f"{name} has shape {list(state[name].shape)} in place of {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise CheckpointError(
            f"{where} does not fit its config ({shown}); it is damaged or from another model: "
            "copy the whole folder again."
        )
    module.load_state_dict(dict(state))


def read_manifest(path: Path, kind: str, version: int, what: str) -> dict[str, Any]:
    """Read a `craft.json` or `config.json` of ours and check what it is.

    Args:
        path: the file.
        kind: its `format`.
        version: the newest version that this code reads.
        what: "a backbone", for messages.

    Raises:
        CheckpointError: missing, not JSON, of another format, of a newer version, or without an entry that
            every file of this format has.
    """
    manifest = read_json(path)
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != kind:
        raise CheckpointError(f"{path} is not {what}: its format is {found!r} in place of {kind!r}.")
    if not isinstance(manifest.get("version"), int) or manifest["version"] > version:
        raise CheckpointError(
            f"{path} has format version {manifest.get('version')!r}, and this CRAFT reads up to "
            f"{version}; update CRAFT."
        )
    missing = [key for key in _ENTRIES[kind] if key not in manifest]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; copy the folder again.")
    return manifest
