"""A causal LM and its text tokenizer from a transformers folder, with errors that a user can act on."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from craft.core.errors import CheckpointError
from craft.core.files import read_json
from craft.models.weight_folder import WeightFolder


def load_llm(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Load `AutoModelForCausalLM` and `AutoTokenizer` from a local folder, safetensors only.

    Args:
        folder: config, weights and tokenizer files. `rope_scaling` and all else in the config is honoured.
        dtype: of the LLM's weights.

    Returns:
        (the LLM in evaluation mode, the tokenizer).

    Raises:
        CheckpointError: a file is missing or damaged, weights are missing or of another shape, or the
            architecture is not one that transformers knows.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    WeightFolder(folder)
    read_json(folder / "config.json")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        llm, report = loaded
    except Exception as error:
        raise CheckpointError(f"The LLM in {folder} cannot be loaded: {_first_line(error)}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the LLM's tensors, the first of them {missing[0]}; the "
            "checkpoint is incomplete."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"The text tokenizer in {folder} cannot be loaded: {_first_line(error)}"
        ) from error
    return llm.eval(), tokenizer


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
