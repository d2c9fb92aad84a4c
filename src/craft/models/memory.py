"""How much memory a training step will take, before it takes it (`--dry-run`)."""

import math
from typing import Any

import torch
from torch import nn

from craft.losses.sal import BLOCK
from craft.models.lvlm import LVLM
from craft.models.recompute import Recompute
from craft.quantize.search import ROW_BLOCK, code_block, kept_bytes

# Stored per layer and token for the backward pass, in multiples of width and of MLP width: norms, q, k, v
# and the attention output, residuals | the MLP's inner activations. Fused attention keeps no [T, T] matrix.
_WIDE, _INNER = 8, 3
_PRODUCTS = (6, 2)  # the same where results of matrix products and attention are kept and no others
_TRAINED = (
    1.4  # times as much where the layer's own weights train (measured on Qwen2-0.5B: 17.3 and 12.2 MiB)
)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, shared ones counted once; the scales of packed ones too."""
    unique = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    named = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    named |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    scales = [tensor for name, tensor in module.state_dict().items() if name not in named]
    return sum(tensor.numel() * tensor.element_size() for tensor in [*unique.values(), *scales])


def estimate_memory(
    lvlm: LVLM,
    batch_size: int,
    seq_len: int,
    dtype: torch.dtype = torch.float32,
    answer_len: int = 8,
    gradient_checkpointing: Recompute = False,
    from_codes: bool = False,
    search: str = "exact",
    mixed: float = 0.0,
) -> dict[str, int]:
    """Estimate the bytes of one training step; works on the meta device.

    Weights, gradients and optimiser state are exact. Activations are a rough count of what autograd keeps
    (±30 %, without a convolutional stem's): both the vision tower and the frozen LLM keep theirs, because
    the gradient passes through the LLM.

    Args:
        lvlm: the model, with `requires_grad` set as it will train.
        batch_size: images per forward pass on the device (before gradient accumulation).
        seq_len: tokens per sample, text and image together.
        dtype: in which activations are kept (that of autocast).
        answer_len: answer tokens per sample; logits are computed there only.
        gradient_checkpointing: layers keep their inputs only, one at a time runs again; or "selective".
        from_codes: the codes are cached (`craft align`), so that the vision tower does not run.
        search: how codewords are found (`craft.quantize.search.SEARCHES`).
        mixed: pictures beside each image that the retention loss takes; it keeps the base tower too.

    Returns:
        Bytes: `weights`, `gradients`, `optimiser` (AdamW: two float32 moments), `activations`, `logits`,
        `search` (nearest code: temporary scores, and what that search keeps beside the codebook), `total`.
    """
    tower = lvlm.visual.vision_tower
    weights = weight_bytes(lvlm) + (weight_bytes(tower) if mixed else 0)
    training = [parameter for parameter in lvlm.parameters() if parameter.requires_grad]
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in training)
    optimiser = sum(parameter.numel() * 2 * 4 for parameter in training)
    width = dtype.itemsize

    activations = searching = 0
    if not from_codes:
        patches = lvlm.visual.grid[0] * lvlm.visual.grid[1]
        vision: Any = tower.siglip_config
        layers = len(tower.layers)  # type: ignore[arg-type]
        if any(p.requires_grad for p in tower.parameters()):
            images = math.ceil(batch_size * (1 + mixed))
            activations = images * patches * width * kept_per_token(vision, layers, gradient_checkpointing)
        book: Any = lvlm.visual.codebook
        rows = min(batch_size * patches, ROW_BLOCK)
        searching = 3 * rows * min(book.size, code_block(rows, book.size, book.codewords.device)) * 4
        searching += 0 if lvlm.visual.continuous else kept_bytes(search, book)
    text: Any = lvlm.backbone.llm.config
    trained = any(p.requires_grad for p in lvlm.backbone.llm.parameters())
    kept = kept_per_token(text, text.num_hidden_layers, gradient_checkpointing, trained)
    activations += batch_size * seq_len * width * kept

    positions = min(batch_size * answer_len, BLOCK)
    logits = positions * text.vocab_size * 4 * 2  # float32, and their gradient
    total = weights + gradients + optimiser + activations + logits + searching
    return {
        "weights": weights,
        "gradients": gradients,
        "optimiser": optimiser,
        "activations": activations,
        "logits": logits,
        "search": searching,
        "total": total,
    }


def kept_per_token(config: Any, layers: int, again: Recompute = False, trained: bool = False) -> int:
    """Values that so many transformer layers keep per token; more where their own weights train."""
    width = int(config.hidden_size)
    mlp = int(getattr(config, "intermediate_size", None) or 4 * width)  # OPT: no name; GPT-Neo: None
    times = _TRAINED if trained else 1
    whole = round(times * (_WIDE * width + _INNER * mlp))
    if again == "selective":
        wide, inner = _PRODUCTS
        return layers * (wide * width + inner * mlp)
    return layers * width + whole if again else layers * whole
