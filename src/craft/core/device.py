"""The device to compute on, its memory, and floating-point types."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from craft.core.errors import ConfigError

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}

_CGROUPS = Path("/sys/fs/cgroup")
_PROCESS_GROUPS = Path("/proc/self/cgroup")
_OLD_GROUPS = ("memory.limit_in_bytes", "memory.usage_in_bytes")  # of version 1 of control groups


def resolve_device(name: str | torch.device | None = None) -> torch.device:
    """The device called `name`; "auto" or None selects CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: the name is not a device, or the machine does not have it.
    """
    if name is None or str(name) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {str(name)!r}; use auto, cpu, cuda, cuda:0 or mps") from error
    if not _is_available(device):
        raise ConfigError(f"device {str(name)!r} is not available on this machine; use --device auto or cpu")
    return device


def _is_available(device: torch.device) -> bool:
    """Whether this machine has the device; torch accepts the names of many others ("xpu", "meta")."""
    if device.type in ("cpu", "mps"):
        return device.type == "cpu" or torch.backends.mps.is_available()
    backend: Any = getattr(torch, device.type, None)
    if not hasattr(backend, "is_available") or not backend.is_available():
        return False
    return (device.index or 0) < backend.device_count()


def resolve_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The floating-point type called `name`; "auto" or None: bfloat16 if supported, else float32.

    On the CPU "auto" is float32: bfloat16 is slow on most processors, and float32 runs are bit-reproducible.

    Raises:
        ConfigError: the name is not one of float32, bfloat16, float16.
    """
    if isinstance(name, torch.dtype):
        return name
    if name is None or name == "auto":
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float32
    try:
        return _DTYPES[name.lower().removeprefix("torch.")]
    except KeyError:
        raise ConfigError(f"unknown dtype {name!r}; use auto, float32, bfloat16 or float16") from None


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """A context for mixed precision in forward passes on `device`; for float32 it does nothing."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device_type=device.type, dtype=dtype)


def rounds_products(device: torch.device) -> bool:
    """Whether torch may round float32 matrices on `device` before it multiplies them (TF32, bfloat16)."""
    owner, name = _product_setting(device)
    return getattr(owner, name, False) not in ("none", "ieee", False)


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Within the block, multiply float32 matrices in float32; then restore torch's setting."""
    if not rounds_products(device):
        yield
        return
    owner, name = _product_setting(device)
    setting = getattr(owner, name)
    setattr(owner, name, "ieee" if name == "fp32_precision" else False)
    try:
        yield
    finally:
        setattr(owner, name, setting)


def _product_setting(device: torch.device) -> tuple[Any, str]:
    """The object and attribute of torch's setting: `fp32_precision` since 2.9, else `allow_tf32`.

    torch raises an error on reading the older attribute if the two differ.
    """
    backends = {"cuda": torch.backends.cuda, "cpu": torch.backends.mkldnn}
    owner = getattr(backends.get(device.type), "matmul", None)
    return owner, "fp32_precision" if hasattr(owner, "fp32_precision") else "allow_tf32"


def free_memory(device: torch.device) -> int:
    """Free bytes of a device; on the CPU, available memory within the limit of a container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    limit, used = container_memory()
    return min(int(psutil.virtual_memory().available), max(0, limit - used))


def container_memory() -> tuple[int, int]:
    """The memory limit of this process's control group (Docker, Kubernetes, SLURM) and its use, in bytes.

    File caches that the system can drop do not count. Of nested groups, the one with the least free memory
    counts. Without a limit it is `sys.maxsize`.
    """
    tightest = (sys.maxsize, 0)
    for folder in _control_groups():
        for limit, usage in (("memory.max", "memory.current"), _OLD_GROUPS):
            try:
                total = int((folder / limit).read_text())  # "max" means no limit
                used = int((folder / usage).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            droppable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            group = (total, max(0, used - droppable))
            tightest = min(tightest, group, key=lambda memory: memory[0] - memory[1])
    return tightest


def _control_groups() -> list[Path]:
    """The folders of this process's memory control group and its parents. In a container, its group is the
    root of the mount."""
    try:
        lines = _PROCESS_GROUPS.read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, kind, path = line.split(":", 2)
        if kind not in ("", "memory"):
            continue
        root = _CGROUPS / kind
        group = root / path.lstrip("/")
        folders += [root, *(folder for folder in (group, *group.parents) if root in folder.parents)]
    return folders
