"""A visual tokenizer as a folder: vision tower, codebook, log τ, text encoder, prior, model card."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from craft.core.device import resolve_device, resolve_dtype
from craft.core.errors import CheckpointError
from craft.core.files import PathLike, atomic_directory, atomic_write_text, read_json, write_json
from craft.core.records import check_record
from craft.core.tensors import counts_fault, load_tensors, save_tensors
from craft.formats.checks import build_with, cast, dtype_named, read_manifest, stored_dtype, under
from craft.models.text_encoder import TextConfig, TextEncoder
from craft.models.towers import build_tower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import Continuous, ResidualCodebook, tower_fingerprint

VISUAL_FORMAT, VERSION = "craft-visual", 1


def save_visual(folder: PathLike, visual: VisualTokenizer, dtype: str | None = None) -> None:
    """Write a visual tokenizer completely or not at all. An existing `README.md` is not replaced.

    Args:
        dtype: of tower and text encoder on disk; by default the dtype each was read in, bfloat16 for a new
            one.
    """
    target, text_dtype = Path(folder), dtype
    dtype = dtype or stored_dtype(visual)
    codebook, tower = visual.codebook, visual.vision_tower
    config = {
        "format": VISUAL_FORMAT,
        "version": VERSION,
        "vision_tower": tower.config,
        "levels": codebook.num_levels,
        "aspect": visual.aspect,
        "dtype": dtype,
        "fingerprint": codebook.fingerprint,
    }
    if isinstance(codebook, ResidualCodebook) and codebook.is_derived:
        config["codewords"] = ResidualCodebook(codebook.levels).fingerprint  # of the rows themselves
    if visual.continuous:  # the saved tower is the base tower of everyone who reads it
        config["fingerprint"] = tower_fingerprint(tower.state_dict())
    with atomic_directory(target) as building:
        write_json(building / "config.json", config)
        save_tensors(building / "model.safetensors", visual_tensors(visual, dtype))
        if visual.prior is not None:
            save_tensors(building / "prior.safetensors", {"counts": visual.prior.to(torch.int64)})
        if visual.text_encoder is not None:
            save_text_encoder(building / "text_encoder", visual.text_encoder, text_dtype)
        write_card(target, building, _visual_card(visual))


def load_visual(
    folder: PathLike, device: str | torch.device = "cpu", dtype: str | torch.dtype = torch.float32
) -> VisualTokenizer:
    """Read a visual tokenizer.

    Args:
        dtype: of the vision tower; codebook, log τ and text encoder are always float32.

    Raises:
        CheckpointError: a file is missing or damaged, does not fit its config, or the codebook does not have
            the fingerprint in the config.
    """
    folder, target = Path(folder), resolve_device(device)
    config = read_manifest(folder / "config.json", VISUAL_FORMAT, VERSION, "a visual tokenizer")
    path = folder / "model.safetensors"
    tensors = load_tensors(path)
    continuous = config["levels"] == 0
    for name in ("codebook.codewords", "log_temperature"):
        if name not in tensors and not (continuous and name.startswith("codebook")):
            raise CheckpointError(f"{path} lacks tensor {name}; copy the folder again.")
    make = partial(build_tower, config["vision_tower"], folder / "config.json")
    tower = build_with(make, cast(under(tensors, "vision_tower."), torch.float32), path)
    if continuous:
        codebook = Continuous(tower.dim, tower_fingerprint(tower.state_dict()))
    else:
        codebook = _codebook(tensors["codebook.codewords"], int(config["levels"]), path)
    derived = config.get("codewords")  # then `fingerprint` is that of the tensors they are derived from
    expected = derived or config["fingerprint"]
    if codebook.fingerprint != expected:
        raise CheckpointError(
            f"{path} holds codebook {codebook.fingerprint}, and {folder / 'config.json'} says {expected}; "
            "one of the two files is from another model or damaged, so copy both again."
        )
    if derived and isinstance(codebook, ResidualCodebook):
        codebook = ResidualCodebook(codebook.levels, str(config["fingerprint"]))
    if tower.dim != codebook.dim:
        raise CheckpointError(
            f"{path}: the tower's features have width {tower.dim}, and codewords have width {codebook.dim}; "
            "copy the folder again."
        )
    prior = folder / "prior.safetensors"
    visual = VisualTokenizer(
        tower,
        codebook,
        load_text_encoder(folder / "text_encoder") if (folder / "text_encoder").is_dir() else None,
        tensors["log_temperature"],
        read_prior(prior, codebook.size) if prior.is_file() else None,
        str(config["aspect"]),
    )
    remember_dtype(visual, config["dtype"], folder / "config.json")
    tower.to(resolve_dtype(dtype, target))
    return visual.to(target).eval()


def read_prior(path: PathLike, size: int) -> Tensor:
    """Level-1 code counts int64 `[K]` from a `prior.safetensors`.

    Raises:
        CheckpointError: the file is missing, damaged, or not counts of K = `size` codes.
    """
    counts = load_tensors(path).get("counts")
    fault = "is missing" if counts is None else counts_fault(counts, size)
    if counts is None or fault:
        raise CheckpointError(f"{path}: the code prior {fault}; copy the folder again.")
    return counts.to(torch.int64)


def read_base_counts(path: PathLike, levels: int, size: int) -> Tensor | None:
    """Code counts int64 `[L, K]` under the base tower from a `prior.safetensors`, or None.

    Raises:
        CheckpointError: they are not counts of L levels of K codes.
    """
    counts = load_tensors(path).get("base_counts")
    if counts is None:
        return None
    fault = f"has {len(counts)} levels instead of {levels}" if len(counts) != levels else None
    for row in counts:
        fault = fault or counts_fault(row, size)
    if fault:
        raise CheckpointError(f"{path}: base_counts {fault}; copy the folder again.")
    return counts.to(torch.int64)


def visual_tensors(visual: VisualTokenizer, dtype: str) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`: the tower in `dtype`, the codebook unrounded, log τ in float32."""
    precision = dtype_named(dtype, Path("dtype"))
    tower = cast(visual.vision_tower.state_dict(), precision)
    exact = visual.codebook.codewords
    rounded = exact.to(precision)
    codebook = {"codebook.codewords": rounded if torch.equal(rounded.float(), exact) else exact}
    return {
        **{f"vision_tower.{name}": tensor for name, tensor in tower.items()},
        **({} if visual.continuous else codebook),
        "log_temperature": visual.log_temperature.detach().float(),
    }


def _codebook(codewords: Tensor, levels: int, path: Path) -> ResidualCodebook:
    if codewords.ndim != 3 or codewords.shape[0] not in (1, levels) or levels < 1:
        raise CheckpointError(
            f"{path}: codebook.codewords has shape {list(codewords.shape)}, and the config says {levels} "
            "levels; copy the folder again."
        )
    exact = codewords.float()
    return ResidualCodebook(exact if codewords.shape[0] == levels else [exact[0]] * levels)


def remember_dtype(module: nn.Module, name: object, where: Path) -> None:
    """Record the name of the dtype on disk, so that saving uses the same one (see `stored_dtype`)."""
    dtype_named(name, where)
    module.stored_dtype = name  # type: ignore[assignment]


def write_card(target: Path, building: Path, text: str) -> None:
    """Copy the existing model card, or write `text` as a new one."""
    if (target / "README.md").is_file():
        shutil.copyfile(target / "README.md", building / "README.md")
    else:
        atomic_write_text(building / "README.md", text)


def millions(tensors: Mapping[str, Tensor]) -> str:
    """Number of parameters for a model card, such as "4.3 M"."""
    return f"{sum(tensor.numel() for tensor in tensors.values()) / 1e6:.1f} M"


def _visual_card(visual: VisualTokenizer) -> str:
    book, (rows, columns) = visual.codebook, visual.grid
    if visual.continuous:
        read = f"No codebook: LLMs read features of width {book.dim} (`{book.fingerprint}`)"
    else:
        read = (
            f"Codebook: {book.num_levels} levels of {book.size} codewords, d = {book.dim}, fingerprint "
            f"`{book.fingerprint}`"
        )
    return (
        "# Visual tokenizer\n\n"
        f"Vision tower ({visual.vision_tower.config['type']}, {millions(visual.vision_tower.state_dict())} "
        f"parameters): {visual.image_size} px, {rows} × {columns} tokens. {read}.\n"
    )


# The text encoder, a folder in that of the visual tokenizer


class _TextFolder(TextConfig):
    tokenizer: bool = True
    dtype: str = "float32"


def read_tokenizer(path: PathLike) -> Tokenizer:
    """Read one `tokenizer.json`.

    Raises:
        CheckpointError: the file is missing or not a tokenizer.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path} does not exist, and the text encoder needs it; copy the folder again.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            f"{path} is damaged or not a tokenizer.json ({error}); copy it again."
        ) from error


def save_text_encoder(folder: PathLike, encoder: TextEncoder, dtype: str | None = None) -> None:
    """Write `config.json`, `model.safetensors` and `tokenizer.json` into `folder`.

    Args:
        dtype: of the weights on disk; by default the dtype they were read in, bfloat16 for a new encoder.
    """
    folder, dtype = Path(folder), dtype or stored_dtype(encoder)
    config: dict[str, Any] = {"format": "craft-text-encoder", "version": 1, **encoder.config, "dtype": dtype}
    config["tokenizer"] = encoder.tokenizer is not None
    write_json(folder / "config.json", config)
    save_tensors(folder / "model.safetensors", cast(encoder.weights(), dtype_named(dtype, folder)))
    if encoder.tokenizer is not None:
        encoder.tokenizer.save(str(folder / "tokenizer.json"))


def load_text_encoder(folder: PathLike) -> TextEncoder:
    """Read what `save_text_encoder` wrote, into float32.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the others.
    """
    folder = Path(folder)
    config = check_record(_TextFolder, read_json(folder / "config.json"), folder / "config.json")
    tokenizer = read_tokenizer(folder / "tokenizer.json") if config.get("tokenizer", True) else None
    dtype = config.get("dtype", "float32")
    dtype_named(dtype, folder / "config.json")
    path = folder / "model.safetensors"
    encoder = _text_encoder(config, tokenizer, load_tensors(path), path)
    encoder.stored_dtype = dtype
    return encoder


def siglip_text_encoder(
    state: Mapping[str, Tensor],
    config: dict[str, Any],
    tokenizer: PathLike | None = None,
    where: PathLike = "the checkpoint",
) -> TextEncoder:
    """The text tower inside a larger checkpoint (VILA-U: `rqvaesiglip.siglip_model.text_model.*`).

    Args:
        state: tensors. Only those with `text_model.` in their names are used, without all up to it.
        config: the `text_config` of the SigLIP config.
        tokenizer: a `tokenizer.json`; with None the encoder cannot encode texts.
        where: the checkpoint's name in messages.

    Raises:
        CheckpointError: weights or tokenizer are missing or do not fit.
    """
    mark = "text_model."
    weights = {name.split(mark, 1)[1]: tensor for name, tensor in state.items() if mark in name}
    if not weights:
        raise CheckpointError(
            f"{where} holds no text tower (no tensor is named *.text_model.*); "
            "losses.contrastive.weight=0 trains without one."
        )
    head = weights.get("head.weight")
    width = {} if head is None or config.get("projection_size") else {"projection_size": head.shape[0]}
    read = None if tokenizer is None else read_tokenizer(tokenizer)
    return _text_encoder({**config, **width}, read, weights, Path(where))


def _text_encoder(
    config: dict[str, Any], tokenizer: Tokenizer | None, state: Mapping[str, Tensor], where: Path
) -> TextEncoder:
    """With weights by SigLIP's names, in float32. Position ids, which older versions saved, are ignored."""
    weights = {f"model.{name}": tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    return build_with(partial(TextEncoder, config, tokenizer), cast(weights, torch.float32), where)
