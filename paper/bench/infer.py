"""Answering, Table 4: time and FLOPs of an image and its question by keep ratio and batch."""

from collections.abc import Callable
from typing import Any

import torch

from craft.core.tokens import VisionTokens
from craft.models.decoding import read
from craft.models.lvlm import LVLM
from paper.bench.flops import question
from paper.bench.measure import counted, fastest, where
from paper.bench.shapes import SHAPES, build_lvlm

KEEP = (1.0, 0.8, 0.6, 0.4)


@torch.no_grad()
def measure(
    size: str, device: torch.device, repeats: int = 5, batches: tuple[int, ...] = (1, 16)
) -> dict[str, Any]:
    """One forward pass, as the paper times it: tower, search, pruning, the LLM up to the first answer token.

    Returns:
        `rows`, `sizes` and `machine`. FLOPs are counted as they run, 2 per multiply-add; the search is
        included.
    """
    shape = SHAPES[size]
    rows = []
    for large in (False, True):
        lvlm = build_lvlm(shape, large, device).requires_grad_(False)
        lvlm.visual.vision_tower.to(shape.dtype)  # as after `craft.load`
        lvlm.visual.prior = torch.arange(1, shape.codes + 1)
        llm: Any = lvlm.backbone.llm
        side = shape.tower["image_size"]
        for count in batches:
            pixels = torch.randn(count, 3, side, side, device=device)
            variants = {str(keep): _answering(lvlm, pixels, keep, question(shape)) for keep in KEEP}
            seconds = fastest(variants, repeats, device)
            llm.set_attn_implementation("eager")  # the counter sees every multiplication
            flops = {name: counted(function) for name, function in variants.items()}
            llm.set_attn_implementation("sdpa")
            for keep in variants:
                rows.append(
                    {
                        "LLM": "large" if large else "small",
                        "images": count,
                        "keep": float(keep),
                        "ms": round(1000 * seconds[keep].wall, 1),
                        "cpu ms": round(1000 * seconds[keep].cpu, 1),
                        "images/s": round(count / seconds[keep].wall, 2),
                        "time": round(seconds[keep].wall / seconds["1.0"].wall, 3),
                        "GFLOP per image": round(flops[keep] / count / 1e9, 2),
                        "FLOPs": round(flops[keep] / flops["1.0"], 3),
                    }
                )
        del lvlm
    return {"rows": rows, "sizes": {"size": size, "patches": shape.patches}, "machine": where(device)}


def _answering(lvlm: LVLM, pixels: torch.Tensor, keep: float, text: str) -> Callable[[], Any]:
    def run() -> Any:
        tokens: VisionTokens = lvlm.visible(lvlm.visual(pixels, with_cls=False), keep)
        return read(lvlm.backbone, tokens, [text] * len(pixels))

    return run
