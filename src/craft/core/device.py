"""Where to compute and in which floating-point type."""

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
_OWN_GROUPS = Path("/proc/self/cgroup")
_OLD_GROUPS = ("memory.limit_in_bytes", "memory.usage_in_bytes")  # of control groups, version 1


def resolve_device(name: str | torch.device | None = None) -> torch.device:
    """The device called `name`; "auto" or None picks CUDA, then MPS, then the CPU.

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
    if not _is_there(device):
        raise ConfigError(f"device {str(name)!r} is not available on this machine; use --device auto or cpu")
    return device


def _is_there(device: torch.device) -> bool:
    """Whether this machine has the device; torch knows the names of many more ("xpu", "meta")."""
    if device.type in ("cpu", "mps"):
        return device.type == "cpu" or torch.backends.mps.is_available()
    kind: Any = getattr(torch, device.type, None)
    return hasattr(kind, "is_available") and kind.is_available() and (device.index or 0) < kind.device_count()


def resolve_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The floating-point type called `name`; "auto" or None: bfloat16 where the device has it, else float32.

    On the CPU "auto" is float32: bfloat16 is slow on most, and a run there is bit-reproducible.

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
    """Mixed precision for forward passes on `device`; float32 means none (a context that does nothing)."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device_type=device.type, dtype=dtype)


def rounds_products(device: torch.device) -> bool:
    """Whether torch is allowed to round float32 matrices there before it multiplies them (TF32, bfloat16)."""
    owner, name = _product_setting(device)
    return getattr(owner, name, False) not in ("none", "ieee", False)


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Products of float32 matrices in float32, whatever torch is allowed; the setting comes back."""
    if not rounds_products(device):
        yield
        return
    owner, name = _product_setting(device)
    allowed = getattr(owner, name)
    setattr(owner, name, "ieee" if name == "fp32_precision" else False)
    try:
        yield
    finally:
        setattr(owner, name, allowed)


def _product_setting(device: torch.device) -> tuple[Any, str]:
    """Where torch keeps what it is allowed: since 2.9 `fp32_precision`, beside which the older switch cannot
    even be read when the two differ."""
    backends = {"cuda": torch.backends.cuda, "cpu": torch.backends.mkldnn}
    owner = getattr(backends.get(device.type), "matmul", None)
    return owner, "fp32_precision" if hasattr(owner, "fp32_precision") else "allow_tf32"


def free_memory(device: torch.device) -> int:
    """Bytes that a device can still give; on the CPU what the system calls available, and the limit of a
    container leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    limit, used = _container()
    return min(int(psutil.virtual_memory().available), max(0, limit - used))


def total_memory(device: torch.device) -> int:
    """Bytes that a device has, used or not; on the CPU no more than the limit of a container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    import psutil

    return min(int(psutil.virtual_memory().total), _container()[0])


def _container() -> tuple[int, int]:
    """The memory limit of this process's control group (Docker, Kubernetes, SLURM) and what it uses of it,
    in bytes, without the files that the system keeps in memory and can drop; the least room counts.
    Without a limit: a number beyond any machine's."""
    found = (sys.maxsize, 0)
    for folder in _control_groups():
        for limit, usage in (("memory.max", "memory.current"), _OLD_GROUPS):
            try:
                most = int((folder / limit).read_text())  # "max" is none
                used = int((folder / usage).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            droppable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            found = min(found, (most, max(0, used - droppable)), key=lambda one: one[0] - one[1])
    return found


def _control_groups() -> list[Path]:
    """The folders of this process's memory control group and of those above it; within a container the
    mount's root is its own group."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, kind, place = line.split(":", 2)
        if kind not in ("", "memory"):
            continue
        root = _CGROUPS / kind
        own = root / place.lstrip("/")
        folders += [root, *(one for one in (own, *own.parents) if root in one.parents)]
    return folders
