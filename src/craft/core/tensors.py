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
        CheckpointError: the file is missing, truncated, or not safetensors, or a value is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; check the path, or copy the folder again")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}); copy or download it again"
        ) from error
    check_finite_weights(tensors, dict.fromkeys(tensors, path), path)
    return tensors


def check_finite_weights(tensors: Mapping[str, Tensor], files: Mapping[str, Path], source: PathLike) -> None:
    """Refuse NaN and infinity in weights. It reads each tensor once.

    Args:
        tensors: those without floating-point values are not read.
        files: the file of a tensor, for the message.
        source: what the message names for a tensor without a file.

    Raises:
        CheckpointError: a value is not finite; tensor and file are named.
    """
    finite = {
        name: torch.stack(torch.aminmax(tensor.detach())).isfinite().all()  # both are NaN if a value is
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.element_size() > 1 and tensor.numel() and not tensor.is_meta
    }
    bad = [name for name, good in finite.items() if not good]
    if bad:
        more = f" and {len(bad) - 1} more tensors have" if len(bad) > 1 else " has"
        raise CheckpointError(
            f"{files.get(bad[0], Path(source))}: tensor {bad[0]}{more} values that are not finite (NaN or "
            "infinity): the file is damaged, or was saved after a failed training; copy or download it again"
        )


def counts_fault(counts: Tensor, size: int | None = None) -> str | None:
    """What is wrong with code counts int64 `[K]`, as a clause after "the code prior"; None if nothing is.

    Args:
        size: K, if it is known.
    """
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
        return f"has dtype {counts.dtype} and must hold counts, which are whole numbers (int64)"
    if counts.ndim != 1 or not counts.numel() or (size is not None and len(counts) != size):
        return f"has shape {list(counts.shape)} instead of [{'K' if size is None else size}]"
    if bool((counts < 0).any()):
        code = int((counts < 0).nonzero()[0, 0])
        return f"has the count {int(counts[code])} for code {code}, and counts cannot be negative"
    return None


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
