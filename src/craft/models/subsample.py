"""An LVLM with a part of its codebook: the ablation of codebook size (Table 6)."""

from craft.core.errors import ConfigError
from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize.subsample import subsample


def subsampled_codebook(lvlm: LVLM, fraction: float, seed: int = 0) -> LVLM:
    """The same LVLM (all parts shared, nothing trained) with a random subset of the codewords of each level.

    Its backbone reads it as it is: sums of a subset's codewords are sums that it could have been shown
    before. The codebook has a fingerprint of its own, so that encoders for it and for the whole one are not
    mixed up, and no code prior comes with it (`craft prior` or an adaptation counts one).

    Args:
        lvlm: a discrete LVLM.
        fraction: of the codewords that stay, in (0, 1]; 1 is `lvlm` itself.
        seed: of the draw. Subsets of one seed are nested: 10 % are among the 25 %.

    Raises:
        ConfigError: the fraction is out of range, or leaves no codeword.
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
        backbone.projector,
        backbone.llm,
        backbone.tokenizer,
        backbone.prompt,
        codebook.fingerprint,
        backbone.borrowed,
    )
    small = LVLM(visual, reader, f"{lvlm.name} ({100 * fraction:g} % of the codewords)", lvlm.origin)
    return small.to(lvlm.device).eval()
