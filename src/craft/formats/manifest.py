"""The `craft.json` and `config.json` of our own layouts: read, and checked for what they must name."""

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
