"""A backbone whose LLM is named, not held: projector and LoRA on disk, the LLM from where it is published.

    FAMILY/BACKBONE/{craft.json ("llm": NAME), projector/, lora/model.safetensors, README.md}

`lora/model.safetensors` has for each linear map M of the LLM factors `M.A` `[r, in]` and `M.B` `[out, r]`:
its weight becomes W + B A. They are added once, when the backbone is loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.errors import CheckpointError
from craft.core.files import load_tensors, save_tensors
from craft.models.llm_source import open_llm


@dataclass(frozen=True, eq=False)
class Borrowed:
    """Where a backbone's LLM is from.

    Attributes:
        name: as for `craft.models.llm_source.find_llm`.
        lora: the factors, in the dtype that they have on disk; none where the LLM is as it was.
    """

    name: str
    lora: dict[str, Tensor]


def load_borrowed(folder: Path, name: str, dtype: torch.dtype) -> tuple[nn.Module, Any, Borrowed]:
    """The LLM (with LoRA added), its text tokenizer, and where both are from.

    Args:
        folder: the backbone's.
        name: the LLM's.
        dtype: of its weights; the sum is made in float32 and rounded once.

    Raises:
        CraftError: the LLM cannot be had (the message says how), or the factors do not fit it.
    """
    path = folder / "lora" / "model.safetensors"
    borrowed = Borrowed(name, load_tensors(path) if path.is_file() else {})
    llm, tokenizer = open_llm(name, torch.float32)
    add_factors(llm, borrowed.lora, path)
    return llm.to(dtype), tokenizer, borrowed


def save_borrowed(folder: Path, borrowed: Borrowed) -> None:
    """Write the factors; the name goes into craft.json."""
    if borrowed.lora:
        save_tensors(folder / "lora" / "model.safetensors", borrowed.lora)


@torch.no_grad()
def add_factors(llm: nn.Module, lora: dict[str, Tensor], where: Path) -> None:
    """W + B A for every linear map that `lora` names, in place; in float32, rounded once.

    Raises:
        CheckpointError: a factor is missing, or of another shape than the LLM's weight.
    """
    weights = dict(llm.named_parameters())
    for name in sorted({key.rpartition(".")[0] for key in lora}):
        weight, a, b = weights.get(f"{name}.weight"), lora.get(f"{name}.A"), lora.get(f"{name}.B")
        fits = weight is not None and a is not None and b is not None and a.ndim == b.ndim == 2
        if not fits or (b.shape[0], a.shape[1]) != weight.shape or b.shape[1] != a.shape[0]:  # type: ignore[union-attr]
            raise CheckpointError(f"{where} does not fit the LLM at {name}; it is from another model.")
        weight.copy_((weight.float() + b.float() @ a.float()).to(weight.dtype))  # type: ignore[union-attr]
