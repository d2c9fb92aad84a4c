"""A code prior as a file of its own: level-1 code counts, and what they were counted on (§3.3)."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from craft.core.errors import CheckpointError, CodebookMismatchError
from craft.core.files import PathLike, read_json, save_tensors, user_path
from craft.formats.artefact import FORMAT
from craft.formats.visual_folder import VISUAL_FORMAT, read_prior
from craft.quantize import ResidualCodebook


def save_prior(
    path: PathLike, counts: Tensor, codebook: ResidualCodebook, about: Mapping[str, str] | None = None
) -> Path:
    """Write a code prior as one safetensors file.

    Args:
        path: the file.
        counts: level-1 code counts int64 `[K]`.
        codebook: whose codes were counted; its fingerprint is written beside the counts.
        about: what else is worth knowing (data, tower).

    Raises:
        CheckpointError: there is not one count for each codeword.
        ConfigError: the place cannot be written to.
    """
    if counts.shape != (codebook.size,):
        raise CheckpointError(
            f"A prior of shape {list(counts.shape)} does not fit {codebook.size} codewords."
        )
    save_tensors(path, {"counts": counts}, {**(about or {}), "codebook": codebook.fingerprint})
    return Path(path)


def load_prior(path: PathLike, codebook: ResidualCodebook) -> Tensor:
    """Read a code prior for a codebook.

    Args:
        path: a file of `save_prior`, or a folder with a `prior.safetensors`: an adapted encoder, the run
            folder around it, a visual tokenizer.
        codebook: what it will be used with.

    Returns:
        Level-1 code counts int64 `[K]`.

    Raises:
        CheckpointError: there is none, it is damaged, or it has another number of codes.
        CodebookMismatchError: it, or the adapted encoder or visual tokenizer that it lies in, says that it
            was counted with another codebook.
    """
    path = user_path(path)
    if path.is_dir():
        place = path / "encoder" if (path / "encoder").is_dir() else path
        path = place / "prior.safetensors"
        if not path.is_file():
            raise CheckpointError(
                f"{place} holds no code prior (prior.safetensors); `craft prior` makes one."
            )
    counts = read_prior(path, codebook.size)
    told = _codebook_of(path)
    if told not in (None, codebook.fingerprint):
        raise CodebookMismatchError(
            f"The code prior in {path} was counted with codebook {told}, and this model reads codebook "
            f"{codebook.fingerprint}; make one for it with `craft prior DATA --out FILE`."
        )
    return counts


def _codebook_of(path: Path) -> str | None:
    """The codebook that a prior was counted with, as its file says; else the manifest of the adapted encoder,
    or the config of the visual tokenizer, that it is a part of."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        told = (file.metadata() or {}).get("codebook")
    if told is not None:
        return told
    for name, kind in {"craft.json": FORMAT, "config.json": VISUAL_FORMAT}.items():
        beside = path.with_name(name)
        found = read_json(beside) if beside.is_file() else None
        if isinstance(found, dict) and found.get("format") == kind:
            return found.get("codebook", found)["fingerprint"]
    return None
