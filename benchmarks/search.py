"""Residual quantisation: ours against the reference formulation, at real size (d=1024, K=16384, L=4).

    python benchmarks/search.py [--quick] [--out search.json]

The reference is how VILA-U and RQ-VAE search: per level `addmm` of |x|² + |c|² - 2 x·c, then `argmin`.
"""

import torch
from _measure import arguments, fastest, peak_bytes, report
from torch import Tensor

from craft.quantize import ResidualCodebook


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


def make(tokens: int, size: int, width: int, levels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features that are sums of codewords plus noise, and codebooks that get finer by level."""
    g = torch.Generator().manual_seed(0)
    codewords = torch.randn(levels, size, width, generator=g) * 0.5 ** torch.arange(levels)[:, None, None]
    features = 0.3 * torch.randn(tokens, width, generator=g)
    for level in range(levels):
        features += codewords[level, torch.randint(size, (tokens,), generator=g)]
    return features.to(device), codewords.to(device)


@torch.no_grad()
def main() -> None:
    """Time both, compare their codes, print the table."""
    options = arguments(__doc__ or "")
    device = torch.device(options.device)
    size, width, levels = (512, 64, 4) if options.quick else (16384, 1024, 4)
    rows, ratios, cpu_ratios, shares, same = [], [], [], [], []
    for images in (1, 4):
        features, codewords = make(256 * images, size, width, levels, device)
        codebook = ResidualCodebook(codewords).to(device)
        variants = {
            "reference": lambda f=features, c=codewords: reference(f, c),
            "ours": lambda f=features, c=codebook: c.quantize(f),
        }
        seconds = fastest(variants, options.repeats, device)
        peak = {name: peak_bytes(function, device) for name, function in variants.items()}
        codes = reference(features, codewords)[0]
        agreement = (codes == codebook.quantize(features).codes).all(1).float().mean().item()
        for name in variants:
            rows.append(
                {
                    "images": images,
                    "search": name,
                    "ms": round(1000 * seconds[name].wall, 1),
                    "cpu ms": round(1000 * seconds[name].cpu, 1),
                    "speed": f"{seconds['reference'].wall / seconds[name].wall:.2f}x",
                    "by cpu": f"{seconds['reference'].cpu / seconds[name].cpu:.2f}x",
                    "peak MiB": round(peak[name] / 2**20, 2),
                    "memory": f"1/{peak['reference'] / peak[name]:.1f}",
                }
            )
        ratios.append(round(seconds["reference"].wall / seconds["ours"].wall, 3))
        cpu_ratios.append(round(seconds["reference"].cpu / seconds["ours"].cpu, 3))
        shares.append(round(peak["ours"] / peak["reference"], 4))
        same.append(agreement)
    facts = {
        "speed ratio (1 and 4 images)": ratios,
        "the same by processor time": cpu_ratios,
        "share of the reference's peak memory": shares,
        "tokens with all codes equal": same,
        "sizes": {"K": size, "d": width, "L": levels, "tokens per image": 256, "dtype": "float32"},
    }
    report("Residual search", rows, facts, options)


if __name__ == "__main__":
    main()
