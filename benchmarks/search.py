"""Residual quantisation: ours against the reference formulation, at real size (d=1024, K=16384, L=4).

    python benchmarks/search.py [--quick] [--out search.json]

What is measured, and how: `paper.bench.search` (`python -m paper bench search`).
"""

import torch
from _measure import arguments, report

from paper.bench.search import measure


def main() -> None:
    """Time every search, compare the codes, print the table."""
    options = arguments(__doc__ or "")
    result = measure("reduced" if options.quick else "real", torch.device(options.device), options.repeats)
    rows = result["rows"]
    first = [row for row in rows if row["codebook"] == "one per level" and row["search"] == "reference"]
    exact = [row for row in rows if row["codebook"] == "one per level" and row["search"] == "exact"]
    fused = [row for row in rows if row["search"] == "fused"]  # on a GPU
    facts = {
        "speed ratio (1 and 4 images, on a GPU 32 too)": [row["speed"] for row in exact],
        "the same by processor time": [row["by cpu"] for row in exact],
        "share of the reference's peak memory": [
            round(ours["peak MiB"] / theirs["peak MiB"], 4) for ours, theirs in zip(exact, first, strict=True)
        ],
        "tokens with all codes equal": [row["same codes"] for row in exact],
        **({"fused: speed ratio": [row["speed"] for row in fused]} if fused else {}),
        **result["facts"],
    }
    report("Residual search", rows, facts, options)


if __name__ == "__main__":
    main()
