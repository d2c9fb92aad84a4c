"""A model with a random subset of its codebook, for the ablation of codebook size (Table 6)."""

import math

import torch

from craft.core.errors import ConfigError
from craft.core.seeding import generator
from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import ResidualCodebook


def subsampled_codebook(lvlm: LVLM, fraction: float, seed: int = 0) -> LVLM:
    """The same LVLM with a random subset of the codewords of each level; its parts are shared, not trained.

    Its backbone reads the subset without training, because a sum of codewords of the subset is also one of
    the whole codebook. The subset has another fingerprint, so encoders for it and for the whole codebook
    cannot be confused, and it has no code prior (`craft prior` or an adaptation counts one).

    Args:
        lvlm: a discrete LVLM.
        fraction: of the codewords that remain, in (0, 1]; with 1 the result is `lvlm` itself.
        seed: of the draw. Subsets of one seed are nested: 10 % are among the 25 %.

    Raises:
        ConfigError: the fraction is out of range, or no codeword remains.
        CraftError: the LVLM is continuous.

    Source: Table 6 (uniform subsampling); one draw per level and nesting are ours.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction is {fraction}; it must be above 0 and at most 1.")
    book = lvlm.visual.need_codes("Subsampling the codebook")
    if fraction == 1:
        return lvlm
    whole, backbone = lvlm.visual, lvlm.backbone
    codebook = subsample(book, fraction, seed)
    visual = VisualTokenizer(
        whole.vision_tower, codebook, whole.text_encoder, whole.log_temperature.detach(), None, whole.aspect
    )
    reader = Backbone(
        backbone.reader,
        backbone.llm,
        backbone.tokenizer,
        backbone.prompt,
        codebook.fingerprint,
        backbone.borrowed,
    )
    small = LVLM(visual, reader, f"{lvlm.name} ({100 * fraction:g} % of the codewords)", lvlm.origin)
    return small.to(lvlm.device).eval()


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
