"""Residual search: every search of the package against the reference formulation, in one run, same features.

The reference is how VILA-U and RQ-VAE search: per level `addmm` of |x|² + |c|² - 2 x·c, then `argmin`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from craft.experiments.bench.measure import fastest, matmul_rate, peak_bytes, where
from craft.experiments.bench.shapes import SHAPES
from craft.quantize import ResidualCodebook
from craft.quantize.search import choose


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
    """Rows whose codes are not float64's: all of them, and those that rounding does not explain.

    A row is explained where, at the first level that differs, the score of the code is within the rounding of
    a float32 sum of d products of the best score.
    """
    if len(features) > _ROWS:
        blocks = zip(features.split(_ROWS), codes.split(_ROWS), strict=True)
        differing, wrong = zip(*[near_ties(rows, levels, found) for rows, found in blocks], strict=True)
        return sum(differing), sum(wrong)
    rest, alive = features.double(), torch.ones(len(features), dtype=torch.bool, device=features.device)
    unexplained = torch.zeros_like(alive)
    for level, codewords in enumerate(levels):
        table = codewords.double()
        scores = rest @ table.T - table.square().sum(1) / 2
        best = scores.max(1)
        found = scores.gather(1, codes[:, level : level + 1])[:, 0]
        rounding = 8 * torch.finfo(torch.float32).eps * rest.norm(dim=1) * table.norm(dim=1).max()
        differs = alive & (best.indices != codes[:, level])
        unexplained |= differs & (best.values - found > rounding)
        alive &= ~differs
        rest = rest - table[codes[:, level]]
    return int((~alive).sum()), int(unexplained.sum())


def make(tokens: int, size: int, width: int, levels: int, shared: bool) -> tuple[Tensor, ResidualCodebook]:
    """Features that are sums of codewords plus noise; codebooks that get finer by level, or one for all."""
    g = torch.Generator().manual_seed(0)
    scale = 1.0 if shared else 0.5 ** torch.arange(levels)[:, None, None]
    codewords = torch.randn(1 if shared else levels, size, width, generator=g) * scale
    features = 0.3 * torch.randn(tokens, width, generator=g)
    for level in range(levels):
        features += codewords[level % len(codewords), torch.randint(size, (tokens,), generator=g)]
    return features, ResidualCodebook([codewords[0]] * levels if shared else codewords)


_ROWS = 2048  # that `near_ties` compares at once
_MULTIPLIED = {"fused": (torch.float16, 3)}
"""What a search multiplies in and how often, where that is not once in float32."""


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


@torch.no_grad()
def measure(
    size: str, device: torch.device, repeats: int = 5, images: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Time, memory and agreement of each search, for a codebook per level and for a shared one.

    Args:
        size: a key of `SHAPES`.
        device: where to.
        repeats: runs of each way; the fastest counts.
        images: how many at once; by default 1 and 4, and on CUDA 32 too.

    Returns:
        `rows`, `facts` and `machine`. A row has the share of a large matrix product's rate in the type that
        the search multiplies in, and on CUDA how many rows of features have other codes than float64 gives.
    """
    shape = SHAPES[size]
    gpu = device.type == "cuda"
    images = images or ((1, 4, 32) if gpu else (1, 4))
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    kinds = [torch.float32, *([torch.float16] * gpu)]
    rates = {kind: matmul_rate(device, kind) for kind in kinds}
    for shared in (False, True):
        kind = "shared" if shared else "one per level"
        for count in images:
            features, codebook = make(shape.patches * count, shape.codes, shape.width, shape.levels, shared)
            features, codebook = features.to(device), codebook.to(device)
            names = ["exact", *(["fused"] * gpu)]
            variants: dict[str, Callable[[], Any]] = {
                "reference": lambda f=features, c=codebook: reference(f, c.levels)
            }
            variants |= {n: lambda n=n, f=features, c=codebook: c.quantize(f, search=n) for n in names}
            seconds = fastest(variants, repeats, device)
            codes = reference(features, codebook.levels)[0]
            flops = 2 * len(features) * shape.width * shape.codes * shape.levels
            for name, function in variants.items():
                found = codes if name == "reference" else codebook.quantize(features, search=name).codes
                factors, times = _MULTIPLIED.get(name, (torch.float32, 1))
                share = times * flops / seconds[name].wall / rates[factors]
                rows.append(
                    {
                        "codebook": kind,
                        "images": count,
                        "search": name,
                        "ms": round(1000 * seconds[name].wall, 3 if gpu else 1),
                        "cpu ms": round(1000 * seconds[name].cpu, 1),
                        "speed": round(seconds["reference"].wall / seconds[name].wall, 2),
                        "by cpu": round(seconds["reference"].cpu / seconds[name].cpu, 2),
                        "peak MiB": round(peak_bytes(function, device) / 2**20, 2),
                        "products, GFLOP/s": round(flops / seconds[name].wall / 1e9, 1),
                        "multiplied": f"{times} x {_name(factors)}",
                        "of its rate, %": round(100 * share, 1),
                        "same codes": round(float((found == codes).all(1).double().mean()), 4),
                    }
                )
                if gpu:
                    differing, wrong = near_ties(features, codebook.levels, found)
                    rows[-1] |= {"not float64's": differing, "not near ties": wrong}
            facts[f"auto, {kind}"] = vars(choose(codebook))
    facts["rate of a large product, GFLOP/s"] = {_name(kind): round(rates[kind] / 1e9, 1) for kind in kinds}
    if gpu:
        facts["fused holds besides, MiB"] = round(shape.levels * shape.codes * shape.width * 4 / 2**20, 1)
    facts["sizes"] = {
        "K": shape.codes,
        "d": shape.width,
        "L": shape.levels,
        "tokens per image": shape.patches,
    }
    return {"rows": rows, "facts": facts, "machine": where(device)}
