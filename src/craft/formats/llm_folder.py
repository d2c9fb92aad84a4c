"""A causal LM and its text tokenizer from a transformers folder, with errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from craft.core.errors import CheckpointError
from craft.core.files import read_json
from craft.formats.weight_folder import WeightFolder
from craft.models.llm_bits import keep_packing, packing

_FAST = {None, "TokenizersBackend", "PreTrainedTokenizerFast"}  # classes that add nothing to tokenizer.json


def load_llm(
    folder: Path, dtype: torch.dtype, bits: int | None = None, device: torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an LLM with `read_llm`, and the `AutoTokenizer` of the same folder.

    Raises:
        CheckpointError: as `read_llm`; or the text tokenizer is missing or damaged.
    """
    from transformers import AutoTokenizer

    llm = read_llm(folder, dtype, bits, device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"The text tokenizer in {folder} cannot be loaded: {_first_line(error)}"
        ) from error
    return llm, tokenizer


def read_llm(
    folder: Path, dtype: torch.dtype, bits: int | None = None, device: torch.device | None = None
) -> PreTrainedModel:
    """Load `AutoModelForCausalLM` from a local folder, safetensors only.

    Args:
        folder: config and weights. Everything in the config is used, such as `rope_scaling`.
        dtype: of the LLM's weights.
        bits: 4 or 8 packs its linear maps on `device` as they are read (`craft.models.llm_bits`).
        device: the device to load to; None is the CPU.

    Returns:
        The LLM in evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged, weights are missing or of another shape, or the
            architecture is unknown to transformers.
    """
    from transformers import AutoModelForCausalLM

    WeightFolder(folder)
    read_json(folder / "config.json")
    packed = {} if bits is None else {"quantization_config": packing(bits, dtype)}
    placement = {} if device is None else {"device_map": {"": device}}
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **packed,
                **placement,
            )
        llm, report = loaded
    except Exception as error:
        raise CheckpointError(f"The LLM in {folder} cannot be loaded: {_first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the LLM's tensors, among them {missing[0]}; the checkpoint is "
            "incomplete."
        )
    keep_packing(llm)
    return llm.eval()


def in_dtype(llm: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Convert the weights of an LLM in place and return it; transformers does not declare `to` like torch."""
    return cast(PreTrainedModel, cast(nn.Module, llm).to(dtype))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The text tokenizer of an LLM's folder, exactly as in its `tokenizer.json`.

    `AutoTokenizer` selects a class by the LLM's architecture, and that class may replace the pre-tokeniser
    and special tokens of the file.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    settings = read_json(folder / "tokenizer_config.json")
    literal = settings.get("tokenizer_class") in _FAST and (folder / "tokenizer.json").is_file()
    if not {"tokenizer_class", "eos_token"} & settings.keys():  # GPT-2: only the class has the end token
        literal = literal and (folder / "special_tokens_map.json").is_file()
    kind = PreTrainedTokenizerFast if literal else AutoTokenizer
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the libraries raise any exception
        raise CheckpointError(f"The text tokenizer in {folder} cannot be loaded: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off transformers' progress bars within the block."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
