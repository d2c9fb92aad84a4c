"""A frozen LLM in 4 or 8 bits, by bitsandbytes (`pip install "craft-vlm[bnb]"`).

The linear maps of its layers are packed while it is loaded (NF4, or LLM.int8()), and each is unpacked when
it computes. Embeddings, norms and output embedding keep their dtype. Gradient flows through to the inputs.
Packed weights cannot be trained, and CRAFT does not save them.
"""

import logging
import math
from importlib.util import find_spec

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from craft.core.errors import CheckpointError, ConfigError


def check_bits(bits: int, device: torch.device) -> None:
    """Check that an LLM can be packed, before anything is loaded.

    Raises:
        ConfigError: `bits` is neither 4 nor 8, or bitsandbytes is missing or does not support the device.
    """
    if bits not in (4, 8):
        raise ConfigError(f"llm_bits is {bits}; use 4 or 8, or leave it out to keep the LLM's dtype.")
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f'llm_bits={bits} needs bitsandbytes: pip install "craft-vlm[bnb]"; or leave llm_bits out.'
        )
    import bitsandbytes

    supported = sorted(bitsandbytes.supported_torch_devices)
    if device.type not in supported:
        raise ConfigError(
            f"llm_bits={bits}: bitsandbytes {bitsandbytes.__version__} runs on {', '.join(supported)}, not "
            f"on {device.type}; leave llm_bits out, or use another --device."
        )


def packing(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    """The `quantization_config` of transformers: LLM.int8(), or NF4 that computes in `dtype`."""
    if bits == 8:  # otherwise it warns at every call that inputs are rounded to float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def keep_packing(llm: nn.Module) -> None:
    """Keep one layout for training and answering.

    On processors with AVX-512 BF16, bitsandbytes repacks 4-bit weights at the first answer into a layout that
    passes no gradient.
    """
    for module in llm.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def bits_of(llm: nn.Module) -> int | None:
    """4 or 8 if an LLM is packed, else None."""
    if not getattr(llm, "is_quantized", False):
        return None
    return next((bits for bits in (4, 8) if getattr(llm, f"is_loaded_in_{bits}bit", False)), None)


def refuse_packed(llm: nn.Module, what: str) -> None:
    """Refuse an operation that needs the LLM's original weights.

    Args:
        what: predicate of the message, such as "cannot be saved".

    Raises:
        CheckpointError: the LLM is packed.
    """
    if bits := bits_of(llm):
        raise CheckpointError(
            f"The LLM is packed in {bits} bits, which are not its original weights, so it {what}; load the "
            "model without llm_bits."
        )


def values(parameter: torch.Tensor) -> int:
    """Number of values in a parameter; in 4 bits, one byte holds two."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
