"""Residual search: every search of the package against the reference formulation, on the same features.

The reference is the search of VILA-U and RQ-VAE: per level `addmm` of |x|² + |c|² - 2 x·c, then `argmin`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from craft.quantize import ResidualCodebook
from craft.quantize.search import choose
from paper.bench.measure import fastest, matmul_rate, peak_bytes, where
from paper.bench.shapes import SHAPES


def reference(features: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Codes `[N, L]` and their sum `[N, d]` by the reference formulation, in float32."""
    remainder, total, codes = features, torch.zeros_like(features), []
    for codewords in levels:
        squares = remainder.square().sum(1, keepdim=True) + codewords.square().sum(1)
        index = torch.addmm(squares, remainder, codewords.T, alpha=-2.0).argmin(1)
        del squares
        chosen = codewords[index]
        remainder, total = remainder - chosen, total + chosen
        codes.append(index)
    return torch.stack(codes, 1), total


def near_ties(features: Tensor, levels: Tensor, codes: Tensor) -> tuple[int, int]:
    """Number of rows whose codes differ from float64's: all, and those that rounding does not explain.

    Rounding explains a row if, at the first level that differs, the score of its code is as close to the best
    score as the rounding of a float32 sum of d products.
    """
    if len(features) > _ROWS:
        blocks = zip(features.split(_ROWS), codes.split(_ROWS), strict=True)
        differing, wrong = zip(*[near_ties(rows, levels, chosen) for rows, chosen in blocks], strict=True)
        return sum(differing), sum(wrong)
    rest, alive = features.double(), torch.ones(len(features), dtype=torch.bool, device=features.device)
    unexplained = torch.zeros_like(alive)
    for level, codewords in enumerate(levels):
        table = codewords.double()
        scores = rest @ table.T - table.square().sum(1) / 2
        best = scores.max(1)
        score = scores.gather(1, codes[:, level : level + 1])[:, 0]
        rounding = 8 * torch.finfo(torch.float32).eps * rest.norm(dim=1) * table.norm(dim=1).max()
        differs = alive & (best.indices != codes[:, level])
        unexplained |= differs & (best.values - score > rounding)
        alive &= ~differs
        rest = rest - table[codes[:, level]]
    return int((~alive).sum()), int(unexplained.sum())


def make(tokens: int, size: int, width: int, levels: int, shared: bool) -> tuple[Tensor, ResidualCodebook]:
    """Features that are sums of codewords plus noise, and a codebook: finer by level, or shared by all."""
    g = torch.Generator().manual_seed(0)
    scale = 1.0 if shared else 0.5 ** torch.arange(levels)[:, None, None]
    codewords = torch.randn(1 if shared else levels, size, width, generator=g) * scale
    features = 0.3 * torch.randn(tokens, width, generator=g)
    for level in range(levels):
        features += codewords[level % len(codewords), torch.randint(size, (tokens,), generator=g)]
    return features, ResidualCodebook([codewords[0]] * levels if shared else codewords)


_ROWS = 2048  # the number that `near_ties` compares at once
_MULTIPLIED = {"fused": (torch.float16, 3)}
"""The type that a search multiplies in and how often, if it is not once in float32."""


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


@torch.no_grad()
def measure(
    size: str, device: torch.device, repeats: int = 5, images: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Time, memory and agreement of each search, for a codebook per level and for a shared one.

    Args:
        size: a key of `SHAPES`.
        device: of features and codebook.
        repeats: runs of each search; the fastest counts.
        images: numbers of images at once; by default 1 and 4, and on CUDA 32 too.

    Returns:
        `rows`, `facts` and `machine`. A row states the share of a large matrix product's rate in the type
        that the search multiplies in, and on CUDA how many features have codes that differ from float64's.
    """
    shape, gpu = SHAPES[size], device.type == "cuda"
    rates = {kind: matmul_rate(device, kind) for kind in (torch.float32, *([torch.float16] * gpu))}
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    for shared in (False, True):
        name = "shared" if shared else "one per level"
        for count in images or ((1, 4, 32) if gpu else (1, 4)):
            features, codebook = make(shape.patches * count, shape.codes, shape.width, shape.levels, shared)
            features, codebook = features.to(device), codebook.to(device)
            about = {"codebook": name, "images": count}
            rows += [about | row for row in _compared(features, codebook, repeats, rates)]
            facts[f"auto, {name}"] = vars(choose(codebook))
    facts["rate of a large product, GFLOP/s"] = {_name(kind): round(rates[kind] / 1e9, 1) for kind in rates}
    if gpu:
        facts["fused holds besides, MiB"] = round(shape.levels * shape.codes * shape.width * 4 / 2**20, 1)
    sizes = {"K": shape.codes, "d": shape.width, "L": shape.levels, "tokens per image": shape.patches}
    return {"rows": rows, "facts": {**facts, "sizes": sizes}, "machine": where(device)}


def _compared(
    features: Tensor, codebook: ResidualCodebook, repeats: int, rates: Mapping[torch.dtype, float]
) -> list[dict[str, Any]]:
    """A row for the reference and each search, on the same features."""
    device = features.device
    gpu = device.type == "cuda"
    variants: dict[str, Callable[[], Any]] = {"reference": lambda: reference(features, codebook.levels)}
    for name in ("exact", *(["fused"] * gpu)):
        variants[name] = partial(codebook.quantize, features, search=name)
    seconds = fastest(variants, repeats, device)
    expected = reference(features, codebook.levels)[0]
    flops = 2 * len(features) * codebook.dim * codebook.size * codebook.num_levels
    rows = []
    for name, function in variants.items():
        codes = expected if name == "reference" else codebook.quantize(features, search=name).codes
        kind, times = _MULTIPLIED.get(name, (torch.float32, 1))
        share = times * flops / seconds[name].wall / rates[kind]
        row = {
            "search": name,
            "ms": round(1000 * seconds[name].wall, 3 if gpu else 1),
            "cpu ms": round(1000 * seconds[name].cpu, 1),
            "speed": round(seconds["reference"].wall / seconds[name].wall, 2),
            "by cpu": round(seconds["reference"].cpu / seconds[name].cpu, 2),
            "peak MiB": round(peak_bytes(function, device) / 2**20, 2),
            "products, GFLOP/s": round(flops / seconds[name].wall / 1e9, 1),
            "multiplied": f"{times} x {_name(kind)}",
            "of its rate, %": round(100 * share, 1),
            "same codes": round(float((codes == expected).all(1).double().mean()), 4),
        }
        if gpu:
            differing, wrong = near_ties(features, codebook.levels, codes)
            row |= {"not float64's": differing, "not near ties": wrong}
        rows.append(row)
    return rows
