"""Names of models: shipped with CRAFT, or on the hub."""

import re
from pathlib import Path
from typing import Any

from craft.core.errors import CraftError
from craft.core.text import one_line

_SHIPPED = Path(__file__).parents[1] / "shipped"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILES: tuple[str, ...] = ("*.json", "*.safetensors", "*.model", "*.txt", "*.md", "*.jinja")


def shipped() -> list[str]:
    """Names of the models that are shipped with CRAFT, such as `craft-tiny/llama`."""
    return sorted(path.parent.relative_to(_SHIPPED).as_posix() for path in _SHIPPED.glob("*/*/craft.json"))


def shipped_folder(name: str) -> Path:
    """The folder of a shipped model."""
    return _SHIPPED / name


def is_hub_id(name: str) -> bool:
    """Whether a name looks like `org/name` and is neither a mistyped shipped name nor a mistyped path."""
    first = name.split("/")[0]
    families = {model.split("/")[0] for model in shipped()}
    return bool(_HUB_ID.fullmatch(name)) and first not in families and not Path(first).exists()


def hub_folder(name: str, download: bool = True) -> Path:
    """The local copy of a hub id; for `org/name/backbone`, of one backbone and the visual tokenizer.

    Args:
        download: get it from the hub; otherwise only a copy in the cache counts.

    Raises:
        CraftError: the hub cannot be reached, or does not have it; or it is not in the cache.
    """
    from huggingface_hub import snapshot_download

    org, repository, *inner = name.split("/")
    patterns: list[str] = (
        [f"{part}/{kind}" for part in (*inner, "visual") for kind in _FILES] if inner else [*_FILES]
    )
    try:
        cached: dict[str, Any] = {} if download else {"local_files_only": True}
        root = Path(snapshot_download(f"{org}/{repository}", allow_patterns=patterns, **cached))
    except Exception as error:  # network, authentication, unknown name: the remedy is the same
        reason = one_line(error, 200)
        if not download:
            raise CraftError(
                f"A file names the model {name!r}, which is not on this machine, and CRAFT downloads only "
                f"what you name yourself. If you trust it: hf download {org}/{repository}"
            ) from error
        raise CraftError(
            f"{name!r} is neither a shipped model nor a folder, and it could not be downloaded from the hub "
            f"({type(error).__name__}: {reason}). Check the name and the connection, or download the model "
            "on another machine and give its folder. "
            f"Shipped models: {', '.join(shipped()) or 'none'}."
        ) from error
    return root.joinpath(*inner)
