"""Where a model looks: the importance of visual tokens that rival ways of pruning go by."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.errors import CraftError
from craft.core.tokens import VisionTokens
from craft.models.backbone import Backbone
from craft.models.visual_tokenizer import VisualTokenizer


@torch.no_grad()
def cls_attention(visual: VisualTokenizer, images: Sequence[Any] | Tensor, batch_size: int = 64) -> Tensor:
    """How much [CLS] attends to each patch in the tower's last layer, mean over heads: float32 `[B, N]`.

    Args:
        visual: its tower runs.
        images: as `VisualTokenizer.encode` takes them.
        batch_size: images per forward pass.

    Raises:
        DataError: an image cannot be read.

    Source: the dominant tokens of VisionZip (arXiv 2412.04467), with our [CLS] (§3.2).
    """
    tower: Any = visual.vision_tower
    attention = tower.layers[-1].self_attn
    projections = (attention.q_proj, attention.k_proj)
    found = []
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        pixels = chunk if isinstance(chunk, Tensor) else visual.preprocess(chunk)
        query, key = (
            output.float().unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for output in _outputs(projections, lambda pixels=pixels: tower(pixels.to(visual.device)))
        )
        weights = (query[:, :, :1] @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
        found.append(weights[:, :, 0, 1:].mean(dim=1))
    return torch.cat(found)


def _outputs(modules: Sequence[nn.Module], run: Callable[[], Any]) -> list[Tensor]:
    """What each module returns in `run`, all its calls joined along the tokens.

    In a tower's layer [CLS] comes first: by a call of its own before the patches', or in front of them.
    """
    seen: dict[nn.Module, list[Tensor]] = {module: [] for module in modules}

    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        seen[module].append(output)

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(outputs, dim=1) for outputs in seen.values()]


@torch.no_grad()
def received_attention(
    backbone: Backbone, tokens: VisionTokens, questions: Sequence[str], layer: int = 2
) -> Tensor:
    """How much the prompt's last token attends to each visual token in an LLM layer: float32 `[B, N]`.

    FastV drops the tokens that get least of it. There they are dropped inside the LLM, behind that layer; as
    a criterion in `craft.pruning` they are dropped in front of the projector, as with every other strategy.
    So its scores cost a prefill of their own that sees all tokens.

    Args:
        backbone: the backbone.
        tokens: one image per question, none padded.
        questions: B texts.
        layer: number of the layer, from 1.

    Raises:
        CraftError: tokens are padded, or the LLM has fewer layers.

    Source: FastV (arXiv 2403.06764), whose K is `layer`; mean over heads.
    """
    llm: Any = backbone.llm
    if tokens.attention_mask is not None:
        raise CraftError("Attention is read from whole images; prune afterwards.")
    if not 1 <= layer <= llm.config.num_hidden_layers:
        raise CraftError(f"This LLM has {llm.config.num_hidden_layers} layers; {layer} is none of them.")
    inputs = backbone.inputs(tokens, questions)
    before = [len(backbone.tokenized(text).before) for text in questions]
    usual = llm.config._attn_implementation
    llm.set_attn_implementation("eager")  # the fused kernels do not give weights
    try:
        output = getattr(llm, llm.base_model_prefix)(**inputs, use_cache=False, output_attentions=True)
    finally:
        llm.set_attn_implementation(usual)
    weights = output.attentions[layer - 1][:, :, -1].float().mean(dim=1)  # [B, T]
    count = tokens.codes.shape[1]
    padding = (~inputs["attention_mask"]).sum(dim=1)
    start = padding + torch.tensor(before, device=padding.device)
    return weights.gather(1, start[:, None] + torch.arange(count, device=padding.device))
