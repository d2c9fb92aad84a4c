"""How benchmarks measure: time, peak memory, what autograd keeps, FLOPs."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is chatty; read when torch is loaded

import torch

from craft.training.run_folder import machine


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Seconds:
    """Time of the fastest run: on the clock, and of all processor threads (which waiting does not add to)."""

    wall: float = float("inf")
    cpu: float = float("inf")


def fastest(variants: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, Seconds]:
    """Time each variant; they take turns, so that noise hits all of them alike."""
    best = {name: Seconds() for name in variants}
    for function in variants.values():
        function()  # warm caches and lazy initialisation
    for _ in range(repeats):
        for name, function in variants.items():
            _wait(device)
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            _wait(device)
            best[name].wall = min(best[name].wall, time.perf_counter() - wall)
            best[name].cpu = min(best[name].cpu, time.process_time() - cpu)
    return best


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """The most memory that torch held at one time during a call beyond what it held before.

    CPU: the running sum of the profiler's allocation records. CUDA: the allocator's own peak. Results are
    included; scratch space that a BLAS library takes for itself is not seen.
    """
    if device.type == "cuda":
        _wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = function()
        _wait(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    held = peak = 0
    for _, change in _allocations(function):
        held += change
        peak = max(peak, held)
    return peak


def held_bytes(function: Callable[[], Any]) -> int:
    """Bytes that a forward pass on the CPU leaves allocated: its result and what autograd keeps."""
    return sum(change for _, change in _allocations(function))


def _allocations(function: Callable[[], Any]) -> list[tuple[int, int]]:
    """When memory was taken or given back during a call on the CPU, and how much; the result is kept."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = function()
    records: Any = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    del result
    return sorted((r.start_ns(), r.nbytes()) for r in records if r.name() == "[memory]")


def counted(function: Callable[[], Any]) -> int:
    """FLOPs of a call, 2 per multiply-add, by `torch.utils.flop_counter`; works on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.enable_grad(), FlopCounterMode(display=False) as counter:  # its hooks want graph nodes
        function()
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product on this device now: what a step could reach at most."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / fastest({"product": lambda: a @ b}, 3, device)["product"].wall


def where(device: torch.device) -> dict[str, Any]:
    """Versions, commit and device, for the files that numbers are written to."""
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else platform.processor() or platform.machine()
    return {
        **machine(),
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": None if gpu else round(os.getloadavg()[0], 1),
    }
