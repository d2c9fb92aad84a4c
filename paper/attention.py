"""Attention to visual tokens, which other pruning methods use as the importance of a token."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from craft.core.errors import CraftError
from craft.core.tokens import VisionTokens
from craft.models.backbone import Backbone
from craft.models.vision_tower import TowerLayer
from craft.models.visual_tokenizer import VisualTokenizer


@torch.no_grad()
def cls_attention(visual: VisualTokenizer, images: Sequence[Any] | Tensor, batch_size: int = 64) -> Tensor:
    """How much [CLS] attends to each patch in the tower's last layer, mean over heads: float32 `[B, N]`.

    Args:
        visual: the visual tokenizer; its tower has a [CLS] token.
        images: as for `VisualTokenizer.encode`.
        batch_size: images per forward pass.

    Raises:
        DataError: an image cannot be read.

    Source: the dominant tokens of VisionZip (arXiv 2412.04467), with our [CLS] (§3.2).
    """
    tower = visual.vision_tower
    attention = cast(TowerLayer, tower.layers[-1]).self_attn
    projections = (attention.q_proj, attention.k_proj)
    importance = []
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        pixels = chunk if isinstance(chunk, Tensor) else visual.preprocess(chunk)
        query, key = (
            output.float().unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for output in _outputs(projections, lambda pixels=pixels: tower(pixels.to(visual.device)))
        )
        weights = (query[:, :, :1] @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
        importance.append(weights[:, :, 0, 1:].mean(dim=1))
    return torch.cat(importance)


def _outputs(modules: Sequence[nn.Module], run: Callable[[], object]) -> list[Tensor]:
    """What each module returns during `run`; the outputs of several calls are joined along the tokens.

    In a tower's layer [CLS] comes first, either in a separate call before that for the patches or as the
    first token of one call.
    """
    outputs: dict[nn.Module, list[Tensor]] = {module: [] for module in modules}

    def record(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        outputs[module].append(output)

    hooks = [module.register_forward_hook(record) for module in modules]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(calls, dim=1) for calls in outputs.values()]


@torch.no_grad()
def received_attention(
    backbone: Backbone, tokens: VisionTokens, questions: Sequence[str], layer: int = 2
) -> Tensor:
    """How much the prompt's last token attends to each visual token in an LLM layer: float32 `[B, N]`.

    FastV drops the tokens that receive the least. It drops them inside the LLM, after that layer; with
    `craft.pruning` they are dropped before the projector, as in every other strategy. Computing the scores
    therefore takes an additional prefill with all tokens.

    Args:
        backbone: the backbone.
        tokens: one image per question, without padding.
        questions: B texts.
        layer: number of the layer, counted from 1.

    Raises:
        CraftError: tokens are padded, or the LLM has no such layer.

    Source: FastV (arXiv 2403.06764), whose K is `layer`; mean over heads.
    """
    llm = backbone.llm
    if tokens.attention_mask is not None:
        raise CraftError("These tokens are padded; compute attention for all tokens of an image, then prune.")
    if not 1 <= layer <= llm.config.num_hidden_layers:
        raise CraftError(f"This LLM has {llm.config.num_hidden_layers} layers; there is no layer {layer}.")
    inputs = backbone.inputs(tokens, questions)
    lengths = [len(backbone.tokenized(text).before) for text in questions]
    implementation = llm.config._attn_implementation or "eager"
    llm.set_attn_implementation("eager")  # fused kernels return no weights
    try:
        output = backbone.run(backbone.base_llm, inputs, use_cache=False, output_attentions=True)
    finally:
        llm.set_attn_implementation(implementation)
    weights = output.attentions[layer - 1][:, :, -1].float().mean(dim=1)  # [B, T]
    count = tokens.codes.shape[1]
    padding = (~inputs["attention_mask"]).sum(dim=1)
    start = padding + torch.tensor(lengths, device=padding.device)
    return weights.gather(1, start[:, None] + torch.arange(count, device=padding.device))
