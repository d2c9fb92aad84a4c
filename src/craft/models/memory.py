"""Estimate of the memory of a training step (`--dry-run`)."""

import math

import torch
from torch import nn
from transformers import PreTrainedConfig

from craft.losses.sal import BLOCK
from craft.losses.table_gradient import Soft
from craft.models.layers import Recompute
from craft.models.lvlm import LVLM
from craft.quantize import ResidualCodebook
from craft.quantize.search import ROW_BLOCK, code_block, kept_bytes

# Values stored per layer and token for the backward pass, in multiples of width (norms, q, k, v, attention
# output, residuals) and of MLP width (inner activations). Fused attention stores no [T, T] matrix.
_WIDE, _INNER = 8, 3
_PRODUCTS = (6, 2)  # the same if only the results of matrix products and attention are stored
_TRAINED = 1.4  # factor if the layer's weights train (measured on Qwen2-0.5B: 17.3 and 12.2 MiB)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, with the scales of packed ones; shared ones count once."""
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
    search: str | None = "exact",
    mixed: float = 0.0,
) -> dict[str, int]:
    """Estimate the bytes of one training step; works on the meta device.

    Weights, gradients and optimiser state are exact. Activations are a rough count of what autograd stores
    (±30 %, without a convolutional stem): those of the vision tower and of the frozen LLM, because the
    gradient passes through the LLM.

    Args:
        lvlm: the model, with `requires_grad` set as it will train.
        batch_size: images per forward pass on the device (before gradient accumulation).
        seq_len: tokens per sample, text and image together.
        dtype: of stored activations (that of autocast).
        answer_len: answer tokens per sample; logits are computed only there.
        gradient_checkpointing: layers store only their inputs, and one at a time runs again; or "selective".
        search: how codewords are found (`craft.quantize.search.SEARCHES`); None if codes are cached
            (`craft align`), so the vision tower does not run.
        mixed: images per training image that the retention loss adds; it also needs the base tower.

    Returns:
        Bytes: `weights`, `gradients`, `optimiser` (AdamW: two float32 moments), `activations`, `logits`,
        `search` (temporary scores, and what the search stores in addition to the codebook), `table_gradient`
        (rows and temporary scores of `craft.losses.table_gradient.Soft`; only with this rule), `total`.
    """
    tower = lvlm.visual.vision_tower
    weights = weight_bytes(lvlm) + (weight_bytes(tower) if mixed else 0)
    training = [parameter for parameter in lvlm.parameters() if parameter.requires_grad]
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in training)
    optimiser = sum(parameter.numel() * 2 * 4 for parameter in training)
    width = dtype.itemsize

    activations = searching = 0
    patches = lvlm.visual.grid[0] * lvlm.visual.grid[1]
    if search is not None:
        layers = len(tower.layers)
        if any(p.requires_grad for p in tower.parameters()):
            images = math.ceil(batch_size * (1 + mixed))
            stored = tower.stored_per_image(gradient_checkpointing)
            if stored is None:
                stored = patches * kept_per_token(tower.siglip_config, layers, gradient_checkpointing)
            activations = images * width * stored
        book = lvlm.visual.codebook
        rows = min(batch_size * patches, ROW_BLOCK)
        searching = 3 * rows * min(book.size, code_block(rows, book.size, book.codewords.device)) * 4
        searching += kept_bytes(search, book) if isinstance(book, ResidualCodebook) else 0
    text = lvlm.backbone.llm.config
    trained = any(p.requires_grad for p in lvlm.backbone.llm.parameters())
    stored = kept_per_token(text, text.num_hidden_layers, gradient_checkpointing, trained)
    activations += batch_size * seq_len * width * stored

    positions = min(batch_size * answer_len, BLOCK)
    logits = positions * text.vocab_size * 4 * 2  # float32, and their gradient
    rule = None if lvlm.backbone.table is None or search is None else lvlm.backbone.table.gradient
    soft = rule.held_bytes(batch_size * patches) if isinstance(rule, Soft) else 0
    parts = {
        "weights": weights,
        "gradients": gradients,
        "optimiser": optimiser,
        "activations": activations,
        "logits": logits,
        "search": searching,
        **({"table_gradient": soft} if soft else {}),
    }
    return {**parts, "total": sum(parts.values())}


def kept_per_token(
    config: PreTrainedConfig, layers: int, checkpointing: Recompute = False, trained: bool = False
) -> int:
    """Values that transformer layers store per token for the backward pass.

    Args:
        config: with `hidden_size` and, if it has one, `intermediate_size`.
        checkpointing: as `gradient_checkpointing` of `estimate_memory`.
        trained: the weights of the layers train, which needs more.
    """
    width = int(config.hidden_size)
    mlp = int(getattr(config, "intermediate_size", None) or 4 * width)  # OPT: no name; GPT-Neo: None
    factor = _TRAINED if trained else 1
    whole = round(factor * (_WIDE * width + _INNER * mlp))
    if checkpointing == "selective":
        wide, inner = _PRODUCTS
        return layers * (wide * width + inner * mlp)
    return layers * width + whole if checkpointing else layers * whole
