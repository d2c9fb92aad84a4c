"""A random subset of a codebook's codewords, for the ablation of codebook size (Table 6)."""

import math

import torch

from craft.core.errors import ConfigError
from craft.core.seeding import generator
from craft.quantize.codebook import ResidualCodebook


def subsample(codebook: ResidualCodebook, fraction: float, seed: int = 0) -> ResidualCodebook:
    """A codebook with ⌊fraction · K + ½⌋ codewords per level, drawn uniformly, in their old order.

    Args:
        codebook: the whole; a table that all levels share stays shared (one draw).
        fraction: in (0, 1].
        seed: of the draw; each level has its own. Subsets of one seed are nested.

    Raises:
        ConfigError: no codeword is left.

    Source: §4.6 and Table 6, "uniformly downsample the codebook".
    """
    keep = math.floor(fraction * codebook.size + 0.5)
    if keep < 1:
        raise ConfigError(f"{100 * fraction:g} % of {codebook.size} codewords leave none; keep more.")
    tables = []
    for level, table in enumerate(codebook.codewords):
        order = torch.randperm(codebook.size, generator=generator("subsample", seed, level))
        tables.append(table[order[:keep].sort().values.to(table.device)])
    return ResidualCodebook(tables * codebook.num_levels if codebook.shared else tables)
