"""A text encoder as a folder: its config, weights and tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from craft.core.errors import CheckpointError
from craft.core.files import PathLike, read_json, write_json
from craft.core.tensors import load_tensors, save_tensors
from craft.models.text_encoder import TextEncoder
from craft.models.weights import cast, dtype_named, load_strict, stored_dtype


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


def find_tokenizer(source: PathLike) -> Tokenizer:
    """The tokenizer of a folder, a `tokenizer.json`, or a hub id such as `google/siglip-large-patch16-256`.

    Raises:
        CheckpointError: there is none, or the hub cannot be reached.
    """
    path = Path(source)
    if path.is_file():
        return read_tokenizer(path)
    if path.is_dir():
        return read_tokenizer(path / "tokenizer.json")
    from huggingface_hub import hf_hub_download

    try:
        return read_tokenizer(hf_hub_download(str(source), "tokenizer.json"))
    except CheckpointError:
        raise
    except Exception as error:  # network, authentication, unknown name: the remedy is the same
        raise CheckpointError(
            f"There is no tokenizer at {source}: it is not a local folder, and no tokenizer.json could be "
            f"downloaded from the hub ({type(error).__name__}). Give a local folder that has one, or train "
            "with losses.contrastive.weight=0."
        ) from error


def save_text_encoder(folder: PathLike, encoder: TextEncoder, dtype: str | None = None) -> None:
    """Write `config.json`, `model.safetensors` and `tokenizer.json` into `folder`.

    Args:
        folder: made when missing.
        encoder: the text encoder.
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
    config = read_json(folder / "config.json")
    tokenizer = read_tokenizer(folder / "tokenizer.json") if config.get("tokenizer", True) else None
    encoder = TextEncoder(config, tokenizer)
    dtype = config.get("dtype", "float32")
    dtype_named(dtype, folder / "config.json")
    path = folder / "model.safetensors"
    _load_weights(encoder, load_tensors(path), path)
    encoder.stored_dtype = dtype
    return encoder


def siglip_text_encoder(
    state: Mapping[str, Tensor],
    config: dict[str, Any],
    tokenizer: PathLike | Tokenizer | None = None,
    where: PathLike = "the checkpoint",
) -> TextEncoder:
    """The text tower inside a larger checkpoint (VILA-U: `rqvaesiglip.siglip_model.text_model.*`).

    Args:
        state: tensors. Only those with `text_model.` in their names are used, without all up to it.
        config: the `text_config` of the SigLIP config.
        tokenizer: a tokenizer, a folder or file with `tokenizer.json`, or a hub id; with None the encoder
            cannot encode texts.
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
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        tokenizer = find_tokenizer(tokenizer)
    head = weights.get("head.weight")
    width = {} if head is None or config.get("projection_size") else {"projection_size": head.shape[0]}
    encoder = TextEncoder({**config, **width}, tokenizer)
    _load_weights(encoder, weights, Path(where))
    return encoder


def _load_weights(encoder: TextEncoder, state: Mapping[str, Tensor], where: Path) -> None:
    """Load weights with SigLIP's names, in float32. Position ids, which older versions saved, are ignored."""
    weights = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    load_strict(encoder.model, cast(weights, torch.float32), where)
