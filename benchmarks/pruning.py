"""Pruning: what choosing tokens costs, and what fewer tokens save in the prefill.

    python benchmarks/pruning.py [--part selection|flops|latency] [--quick] [--out pruning.json]

Selection: ours, DivPrune as published and with a running minimum, random, and quotas by a search over γ
for each image. FLOPs: counted by torch.utils.flop_counter on the meta device, 2 FLOP per multiply-add.
Latency: one forward pass over image and prompt of an LLM with random weights, beside the time that reading
its weights once takes at the memory bandwidth measured here: no batch is faster.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from _measure import arguments, counted, fastest, report
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from craft.core.tokens import VisionTokens
from craft.models.projector import Projector
from craft.models.vision_tower import SiglipTower
from craft.pruning import budget_of, prune_tokens
from paper.bench.shapes import build_llm

KEEP = (1.0, 0.8, 0.6, 0.4)
TEXT = 50
"""Text tokens around the image."""

SIGLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
LLAMA_7B = {"vocab_size": 32004}  # the rest is LlamaConfig's default: Llama-2-7B
QWEN2_HALF_B = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip

A100 = {"flops": 312e12, "bytes": 1.555e12, "launch": 5e-6}
"""For what is calculated: dense bfloat16 FLOP/s, memory bytes/s, seconds per kernel launch."""


# --- selection ---------------------------------------------------------------------------------------------


def grids(images: int, side: int, size: int = 16384, width: int = 1024) -> tuple[VisionTokens, Tensor]:
    """Tokens of random images with blobs of Zipf-distributed codes, and a prior of the same distribution."""
    g = torch.Generator().manual_seed(side * 1000 + images)
    zipf = 1 / torch.arange(1, size + 1).float() ** 1.1
    coarse = torch.multinomial(zipf, images * 16, True, generator=g).view(images, 1, 4, 4).float()
    blobs = torch.nn.functional.interpolate(coarse, size=(side, side)).view(images, -1).long()
    noise = torch.multinomial(zipf, images * side * side, True, generator=g).view(images, -1)
    codes = torch.where(torch.rand(blobs.shape, generator=g) < 0.5, blobs, noise)
    table = torch.randn(size, width, generator=g)
    quantized = table[codes] + 0.1 * torch.randn(*codes.shape, width, generator=g)
    tokens = VisionTokens(
        features=quantized,
        codes=codes[..., None],
        quantized=quantized,
        residual=torch.rand(codes.shape, generator=g),
        positions=torch.arange(side * side).expand_as(codes),
        grid=(side, side),
    )
    return tokens, (zipf * 1e7).long()


def divprune_as_published(tokens: VisionTokens, keep: int) -> list[list[int]]:
    """The greedy of DivPrune's code: each pick takes the minimum over all distances to what was picked."""
    picks = []
    for vectors in tokens.quantized:
        unit = vectors / vectors.norm(dim=1, keepdim=True)
        distance = 1 - unit @ unit.T
        picked = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
        while len(picked) < keep:
            picked.append(int(distance[picked].amin(dim=0).argmax()))
        picks.append(picked)
    return picks


def searched(tokens: VisionTokens, keep: int, prior: Tensor) -> list[dict[int, int]]:
    """The quotas of each image by bisection over γ, as in the paper, without the choice within a code."""
    ratio = (prior.double() + 1).log()
    ratio = ratio - ratio.min() + 1
    quotas = []
    for codes in tokens.codes[..., 0].tolist():
        counts = Counter(codes)
        sizes = [(n, float(ratio[k])) for k, n in counts.items()]
        low, high = 0.0, 1.0

        def total(gamma: float, sizes: list[tuple[int, float]] = sizes) -> int:
            return sum(math.ceil(n * math.exp(-gamma * lr)) for n, lr in sizes)

        while total(high) > max(keep, len(sizes)):
            high *= 2
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if total(middle) > keep else (low, middle)
        quotas.append({k: math.ceil(n * math.exp(-high * float(ratio[k]))) for k, n in counts.items()})
    return quotas


class Traffic(TorchDispatchMode):
    """Counts operations and the bytes of their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [
            x for x in torch.utils._pytree.tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)
        ]
        self.calls += 1
        self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return result


def selection(options: Any, device: torch.device) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Milliseconds per image of each way to choose, at keep ratio 0.8. Ours never looks at vectors: its
    are short; what copying those of real width takes, with a choice by lot, stands beside it."""
    sides, batches = ((8,), (1, 4)) if options.quick else ((16, 24, 27), (1, 32, 256))
    rows: list[dict[str, Any]] = []
    ours: dict[tuple[int, int], float] = {}
    for side in sides:
        count = side * side
        keep = budget_of(0.8, count)
        for images in batches:
            width = 64 if images * count > 50_000 else 1024  # only DivPrune uses the vectors
            tokens, prior = grids(images, side, width=width)
            few = tokens[:2].to(device)  # for selections that run image by image
            tokens = tokens.to(device)
            slim = replace(tokens, features=tokens.features[..., :8], quantized=tokens.quantized[..., :8])

            def ours_by(
                strategy: str, tokens: VisionTokens = slim, prior: Tensor = prior
            ) -> Callable[[], Any]:
                return lambda: prune_tokens(tokens, prior, 0.8, strategy=strategy)

            variants = {name: ours_by(name) for name in ("full", "quota+residual", "random")}
            if width == 1024:
                variants["copying the kept vectors"] = ours_by("random", tokens)
            variants["divprune, running minimum"] = ours_by("divprune", tokens)
            variants["divprune, as published"] = lambda f=few, k=keep: divprune_as_published(f, k)
            variants["search over γ"] = lambda f=few, k=keep, p=prior: searched(f, k, p)
            seconds = fastest(variants, options.repeats, device)
            for name, time in seconds.items():
                each = len(few) if name in ("divprune, as published", "search over γ") else images
                rows.append(
                    {
                        "tokens": count,
                        "images": images,
                        "selection": name,
                        "ms per image": round(1000 * time.wall / each, 3),
                        "cpu ms per image": round(1000 * time.cpu / each, 3),
                    }
                )
            with Traffic() as traffic:
                prune_tokens(tokens, prior, 0.8)
            moved = traffic.calls * A100["launch"] + traffic.bytes / A100["bytes"]
            ours[count, images] = moved / images
    flops = prefill_flops(LLAMA_7B, "llama", 256 + TEXT)[0] if not options.quick else 1e12
    weights = 2 * 6.74e9 / A100["bytes"]
    shares = {
        f"{count} tokens, {images} images": round(
            100 * each / (max(flops / A100["flops"], weights / images)), 3
        )
        for (count, images), each in ours.items()
        if count == 256 or options.quick
    }
    facts: dict[str, Any] = {
        "calculated: selection in percent of a 7B prefill of 306 tokens on an A100": shares
    }
    if device.type != "cpu":
        facts["grids with the same sets as on the CPU"] = same_sets(device)
    return rows, facts


def same_sets(device: torch.device) -> dict[str, str]:
    """Of random grids, how many keep the same tokens on the device and on the CPU, by keep ratio."""
    tokens, prior = grids(256, 16, width=8)
    same = {}
    for keep in KEEP[1:]:
        here = prune_tokens(tokens, prior, keep).positions
        there = prune_tokens(tokens.to(device), prior, keep).positions.cpu()
        same[str(keep)] = f"{int((here == there).all(1).sum())} of {len(here)}"
    return same


# --- FLOPs -------------------------------------------------------------------------------------------------


def prefill_flops(config: dict[str, Any], kind: str, length: int) -> tuple[int, int]:
    """FLOPs of one forward over `length` tokens with logits at the last, and the LLM's hidden width."""
    # eager: every multiplication in sight of the counter
    llm = build_llm((kind, config), torch.device("meta"), torch.bfloat16, "eager")
    width = llm.config.hidden_size
    embeds = torch.empty(1, length, width, dtype=torch.bfloat16, device="meta")
    mask = torch.empty(1, 1, length, length, dtype=torch.bfloat16, device="meta")
    with torch.no_grad():
        return counted(lambda: llm(inputs_embeds=embeds, attention_mask=mask, logits_to_keep=1)), width


def flops(options: Any, device: torch.device) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """FLOPs by keep ratio: one tower and search, projector and LLM over the kept tokens. Nothing runs."""
    models = {"7B": (LLAMA_7B, "llama"), "0.5B": (QWEN2_HALF_B, "qwen2")}
    if options.quick:
        models = {"tiny": (TINY, "llama")}
    with torch.device("meta"), torch.no_grad():
        tower = SiglipTower({**SIGLIP, "image_size": 256, "patch_size": 16})
        pixels = torch.empty(1, 3, 256, 256)
        seeing = counted(lambda: tower(pixels))
    search = 2 * 256 * 1024 * 16384 * 4  # one product with each of four codebooks
    rows: list[dict[str, Any]] = []
    ratios: dict[str, list[float]] = {}
    for name, (config, kind) in models.items():
        whole = 0.0
        for keep in KEEP:
            tokens = budget_of(keep, 256)
            prefill, width = prefill_flops(config, kind, tokens + TEXT)
            projector = Projector({"type": "mlp2x_gelu", "in": 1024, "out": width}).to("meta")
            with torch.no_grad():
                projecting = counted(lambda p=projector, n=tokens: p(torch.empty(1, n, 1024, device="meta")))
            total = seeing + search + projecting + prefill
            whole = whole or total
            ratios.setdefault(name, []).append(round(total / whole, 4))
            rows.append(
                {
                    "LLM": name,
                    "keep": keep,
                    "tokens": tokens + TEXT,
                    "tower + search TFLOP": round((seeing + search) / 1e12, 3),
                    "projector + prefill TFLOP": round((projecting + prefill) / 1e12, 3),
                    "ratio": round(total / whole, 4),
                    "LLM ratio": round((tokens + TEXT) / (256 + TEXT), 4),
                }
            )
    return rows, {"FLOPs ratio by keep": {"keep": list(KEEP), **ratios}}


# --- latency -----------------------------------------------------------------------------------------------


def bandwidth(device: torch.device) -> float:
    """Bytes/s of reading memory: the sum of a large array, the fastest of a few."""
    array = torch.ones(2**27 if device.type == "cuda" else 2**26, dtype=torch.float32, device=device)
    best = fastest({"sum": array.sum}, 5, device)["sum"].wall
    return array.numel() * 4 / best


def reading(llm: Any, embeds: Tensor) -> Callable[[], Any]:
    """One forward pass with logits at the last position."""
    return lambda: llm(inputs_embeds=embeds, logits_to_keep=1)


def latency(options: Any, device: torch.device) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Milliseconds of one forward over image and prompt, by keep ratio and batch."""
    on_gpu = device.type == "cuda"
    models = {"0.5B": (QWEN2_HALF_B, "qwen2", (1, 4))}
    if options.quick:
        models = {"tiny": (TINY, "llama", (1, 2))}
    elif on_gpu:
        models = {"7B": (LLAMA_7B, "llama", (1, 16, 32)), "0.5B": (QWEN2_HALF_B, "qwen2", (1, 16, 32))}
    dtype = torch.bfloat16 if on_gpu else torch.float32
    speed, rows = bandwidth(device), list[dict[str, Any]]()
    chosen, prior = grids(32, 8 if options.quick else 16, width=64)
    chosen = chosen.to(device)
    sizes = sorted({images for _, _, batches in models.values() for images in batches})
    choosing = {str(n): lambda few=chosen[:n]: prune_tokens(few, prior, 0.8) for n in sizes}
    picking = fastest(choosing, options.repeats, device)
    for name, (config, kind, batches) in models.items():
        llm = build_llm((kind, config), device, dtype)
        weights = sum(p.numel() * p.element_size() for p in llm.parameters())
        for images in batches:
            embeds = {
                keep: torch.randn(
                    images, budget_of(keep, 256) + TEXT, llm.config.hidden_size, device=device, dtype=dtype
                )
                for keep in KEEP
            }
            with torch.no_grad():
                seconds = fastest(
                    {str(keep): reading(llm, inputs) for keep, inputs in embeds.items()},
                    options.repeats,
                    device,
                )
            for keep in KEEP:
                took = seconds[str(keep)].wall
                rows.append(
                    {
                        "LLM": name,
                        "images": images,
                        "keep": keep,
                        "ms": round(1000 * took, 1),
                        "cpu ms": round(1000 * seconds[str(keep)].cpu, 1),
                        "speed": f"{seconds['1.0'].wall / took:.2f}x",
                        "by cpu": f"{seconds['1.0'].cpu / seconds[str(keep)].cpu:.2f}x",
                        "floor ms": round(1000 * weights / speed, 1),
                        "selection %": round(100 * picking[str(images)].wall / took, 3),
                    }
                )
        del llm
    facts = {"dtype": str(dtype), "memory bandwidth GB/s": round(speed / 1e9, 1)}
    facts["selection ms by images"] = {name: round(1000 * s.wall, 3) for name, s in picking.items()}
    return rows, facts


RUN = {"selection": selection, "flops": flops, "latency": latency}


def main() -> None:
    """Run the chosen parts, and print a table for each."""
    options = arguments(
        __doc__ or "", lambda parser: parser.add_argument("--part", choices=RUN, help="only this one")
    )
    device = torch.device(options.device)
    titles = {
        "selection": "Choosing tokens at keep ratio 0.8",
        "flops": "FLOPs of an image and its prompt (2 per multiply-add)",
        "latency": "One forward over image and prompt",
    }
    out = options.out
    for part in [options.part] if options.part else RUN:
        if out is not None and options.part is None:
            options.out = out.with_name(f"{out.stem}_{part}{out.suffix}")
        rows, facts = RUN[part](options, device)
        report(titles[part], rows, facts, options)


if __name__ == "__main__":
    main()
