"""Tensors on disk as safetensors whose bytes depend on their content alone, and hashes of tensors."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from craft.core.errors import CheckpointError
from craft.core.files import PathLike, atomic_write_bytes


def save_tensors(
    path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, atomically; equal content gives equal bytes.

    Tensors are moved to the CPU, made contiguous and sorted by name; `metadata` is sorted too.
    """
    clones = {name: _plain(tensors[name]).clone() for name in sorted(tensors)}  # without shared storage
    data = save(clones)
    if metadata:  # the library writes metadata in hash order, which differs between runs
        data = _with_metadata(data, metadata)
    atomic_write_bytes(path, data)


def _with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Rewrite a safetensors header with sorted `__metadata__` (format: 8-byte length, JSON, padded to 8)."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    ordered = {"__metadata__": {key: str(metadata[key]) for key in sorted(metadata)}, **header}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def load_tensors(path: PathLike) -> dict[str, Tensor]:
    """Read every tensor of one safetensors file, to the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, or not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; check the path, or copy the folder again")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}); copy or download it again"
        ) from error


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over sorted names, dtypes, shapes and little-endian bytes; independent of the device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = _plain(tensors[name])
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{list(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_rounded(tensors: Mapping[str, Tensor]) -> str:
    """`hash_tensors` of the values rounded to bfloat16: equal for weights in float32 and in bfloat16."""
    rounded = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in tensors.items()}
    return hash_tensors(rounded)
