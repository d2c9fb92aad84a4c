"""A random subset of a codebook's codewords, for the ablation of codebook size (Table 6)."""

import math

import torch

from craft.core.errors import ConfigError
from craft.core.seeding import generator
from craft.quantize.codebook import ResidualCodebook


def subsample(codebook: ResidualCodebook, fraction: float, seed: int = 0) -> ResidualCodebook:
    """A codebook with ⌊fraction · K + ½⌋ codewords per level, drawn uniformly, in their old order.

    Args:
        codebook: the whole codebook; a table that all levels share remains shared (one draw).
        fraction: in (0, 1].
        seed: of the draw, which differs between levels. Subsets of one seed are nested.

    Raises:
        ConfigError: no codeword remains.

    Source: §4.6 and Table 6, "uniformly downsample the codebook".
    """
    size = math.floor(fraction * codebook.size + 0.5)
    if size < 1:
        raise ConfigError(
            f"{100 * fraction:g} % of {codebook.size} codewords is none; use a larger fraction."
        )
    tables = []
    for level, table in enumerate(codebook.codewords):
        order = torch.randperm(codebook.size, generator=generator("subsample", seed, level))
        tables.append(table[order[:size].sort().values.to(table.device)])
    return ResidualCodebook(tables * codebook.num_levels if codebook.shared else tables)
