"""How benchmarks measure: time, peak memory, the bytes that autograd holds, FLOPs."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is chatty; read when torch is loaded

import torch

from craft.core.provenance import machine


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Seconds:
    """Time of the fastest run: on the clock, and of all processor threads (waiting does not count)."""

    wall: float = float("inf")
    cpu: float = float("inf")


def fastest(variants: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, Seconds]:
    """Time each variant. They take turns, so that noise affects all of them alike."""
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
    """The peak of torch's memory during a call, minus what it held before.

    On a CPU it is the highest running sum of the profiler's allocation records; on CUDA the allocator's own
    peak. The result counts; scratch space of a BLAS library does not.
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
    """Bytes that a forward pass on the CPU leaves allocated: its result and what autograd holds."""
    return sum(change for _, change in _allocations(function))


def _allocations(function: Callable[[], Any]) -> list[tuple[int, int]]:
    """Time and bytes of every allocation (and, negative, release) during a call on the CPU."""
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
    """FLOP/s of a large matrix product on this device now: the upper bound of a step."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / fastest({"product": lambda: a @ b}, 3, device)["product"].wall


def where(device: torch.device) -> dict[str, Any]:
    """Versions, commit and device, for the result files."""
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else platform.processor() or platform.machine()
    return {
        **machine(),
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": None if gpu else round(os.getloadavg()[0], 1),
    }
