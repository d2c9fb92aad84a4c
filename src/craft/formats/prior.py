"""A code prior as a separate file: level-1 code counts, and what they were counted on (§3.3)."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from craft.core.errors import CheckpointError, CodebookMismatchError
from craft.core.files import PathLike, user_path
from craft.core.tensors import counts_fault, save_tensors
from craft.formats.artefact import FORMAT
from craft.formats.checks import format_of, read_manifest
from craft.formats.visual_folder import VISUAL_FORMAT, read_prior
from craft.quantize import ResidualCodebook


def save_prior(
    path: PathLike, counts: Tensor, codebook: ResidualCodebook, about: Mapping[str, str] | None = None
) -> Path:
    """Write a code prior as one safetensors file.

    Args:
        counts: level-1 code counts int64 `[K]`.
        codebook: the codebook whose codes were counted; its fingerprint is saved with the counts.
        about: further metadata, such as data and tower.

    Raises:
        CheckpointError: `counts` does not have one count per codeword.
        ConfigError: the file cannot be written.
    """
    if fault := counts_fault(counts, codebook.size):
        raise CheckpointError(f"The code prior {fault}; give one count per codeword.")
    save_tensors(path, {"counts": counts}, {**(about or {}), "codebook": codebook.fingerprint})
    return Path(path)


def load_prior(path: PathLike, codebook: ResidualCodebook) -> Tensor:
    """Read a code prior for a codebook.

    Args:
        path: a file of `save_prior`, or a folder with a `prior.safetensors`: an adapted encoder, its run
            folder, or a visual tokenizer.

    Returns:
        Level-1 code counts int64 `[K]`.

    Raises:
        CheckpointError: there is no prior, it is damaged, or it has another number of codes.
        CodebookMismatchError: according to its metadata, or to the adapted encoder or visual tokenizer in
            the same folder, it was counted with another codebook.
    """
    path = user_path(path)
    if path.is_dir():
        folder = path / "encoder" if (path / "encoder").is_dir() else path
        path = folder / "prior.safetensors"
        if not path.is_file():
            raise CheckpointError(
                f"{folder} holds no code prior (prior.safetensors); `craft prior` makes one."
            )
    counts = read_prior(path, codebook.size)
    fingerprint = _codebook_of(path)
    if fingerprint not in (None, codebook.fingerprint):
        raise CodebookMismatchError(
            f"The code prior in {path} was counted with codebook {fingerprint}, and this model reads "
            f"codebook {codebook.fingerprint}; make one for it with `craft prior DATA --out FILE`."
        )
    return counts


def _codebook_of(path: Path) -> str | None:
    """The fingerprint of the codebook that a prior was counted with, or None.

    It is in the file's metadata, else in the manifest of the adapted encoder or the config of the visual
    tokenizer in the same folder.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        fingerprint = (file.metadata() or {}).get("codebook")
    if fingerprint is not None:
        return fingerprint
    encoder, tokenizer = path.with_name("craft.json"), path.with_name("config.json")
    if format_of(encoder) == FORMAT:
        return read_manifest(encoder, FORMAT, 1, "an adapted encoder")["codebook"]["fingerprint"]
    if format_of(tokenizer) == VISUAL_FORMAT:
        return read_manifest(tokenizer, VISUAL_FORMAT, 1, "a visual tokenizer")["fingerprint"]
    return None
