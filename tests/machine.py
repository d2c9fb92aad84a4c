"""On which kind of machine a result to the bit holds: shared by the fixture's writer and its tests."""

import platform
from pathlib import Path

import torch


def machine_kind() -> dict[str, str]:
    """What decides the last bits of a CPU result: torch, its CPU instructions, and whose CPU it is."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    vendor = next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")
    return {
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cpu": vendor or platform.machine(),
    }
