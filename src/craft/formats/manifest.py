"""Read the `craft.json` and `config.json` of CRAFT's layouts and check their entries."""

from pathlib import Path
from typing import Any

from craft.core.errors import CheckpointError
from craft.core.files import read_json

_ENTRIES = {
    "craft-visual": ("vision_tower", "levels", "aspect", "dtype", "fingerprint"),
    "craft-native": ("visual", "codebook", "prompt", "dtype"),
    "craft-encoder": ("codebook", "vision_tower", "tower"),
    "craft-tuned": ("codebook", "vision_tower", "tower", "parts", "base"),
}


def read_manifest(path: Path, kind: str, version: int, what: str) -> dict[str, Any]:
    """Read a `craft.json` or `config.json` and check its format, version and entries.

    Args:
        path: the file.
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
