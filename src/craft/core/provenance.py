"""Provenance of a result: versions, platform, accelerator, commit."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Versions, platform, accelerator and, in a checkout, the commit."""
    import torch

    versions = {}
    for name in ("craft-vlm", "torch", "transformers", "accelerate", "safetensors", "numpy", "pillow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of this checkout, or None in an installed package.

    The environment variable CRAFT_COMMIT overrides it, for copies without history.
    """
    root = Path(__file__).resolve().parents[3]
    if commit := os.environ.get("CRAFT_COMMIT"):
        return commit
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
