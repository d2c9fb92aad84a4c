"""A frozen LLM in 4 or 8 bits, by bitsandbytes (`pip install "craft-vlm[bnb]"`).

The linear maps of its layers are packed as it is loaded (NF4, or LLM.int8()) and unpacked one at a time where
they compute; embeddings, norms and output embedding keep their dtype. Gradient flows through to the inputs.
What is packed cannot be trained, and is not written to disk.
"""

import logging
import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from craft.core.errors import CheckpointError, ConfigError

BLOCK = 64
"""Weights that share one float32 scale in 4 bits."""


def check_bits(bits: int, device: torch.device) -> None:
    """Refuse what cannot be, before anything is loaded.

    Raises:
        ConfigError: `bits` is neither 4 nor 8, bitsandbytes is not installed, or it does not know the device.
    """
    if bits not in (4, 8):
        raise ConfigError(f"llm_bits is 4 or 8, not {bits}; leave it out for the LLM as it is.")
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f'llm_bits={bits} needs bitsandbytes: pip install "craft-vlm[bnb]"; or leave llm_bits out.'
        )
    import bitsandbytes

    known = sorted(bitsandbytes.supported_torch_devices)
    if device.type not in known:
        raise ConfigError(
            f"llm_bits={bits}: bitsandbytes {bitsandbytes.__version__} runs on {', '.join(known)}, not on "
            f"{device.type}; leave llm_bits out, or take another --device."
        )


def packing(bits: int, dtype: torch.dtype) -> Any:
    """The `quantization_config` of transformers: LLM.int8(), or NF4 that computes in `dtype`."""
    from transformers import BitsAndBytesConfig

    if bits == 8:  # which tells at every map of every step that inputs are rounded to float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def keep_packing(llm: nn.Module) -> None:
    """One layout for training and answering: for processors with AVX-512 BF16 bitsandbytes would pack 4 bits
    anew at the first answer, in a layout that passes no gradient on."""
    for module in llm.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def bits_of(llm: nn.Module) -> int | None:
    """4 or 8 where an LLM is packed, else None."""
    if not getattr(llm, "is_quantized", False):
        return None
    return next((bits for bits in (4, 8) if getattr(llm, f"is_loaded_in_{bits}bit", False)), None)


def refuse_packed(llm: nn.Module, what: str) -> None:
    """Refuse what needs the LLM's own weights.

    Raises:
        CheckpointError: the LLM is packed.
    """
    if bits := bits_of(llm):
        raise CheckpointError(
            f"The LLM is held in {bits} bits, which are not its weights, so it {what}; load the model "
            "without llm_bits for that."
        )


def values(parameter: torch.Tensor) -> int:
    """How many values a parameter stands for: packed in 4 bits, two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def packed_saving(llm: Any, bits: int) -> int:
    """Bytes that packing saves: of all linear maps but the output embedding; works on the meta device."""
    head = llm.get_output_embeddings()
    saving = 0
    for module in llm.modules():
        if isinstance(module, nn.Linear) and module is not head:
            count = module.weight.numel()
            packed = count + 4 * module.out_features if bits == 8 else count // 2 + 4 * -(-count // BLOCK)
            saving += count * module.weight.element_size() - packed
    return saving
