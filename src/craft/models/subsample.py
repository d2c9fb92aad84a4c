"""An LVLM with a subset of its codebook, for the ablation of codebook size (Table 6)."""

from craft.core.errors import ConfigError
from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize.subsample import subsample


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
        backbone.projector,
        backbone.llm,
        backbone.tokenizer,
        backbone.prompt,
        codebook.fingerprint,
        backbone.borrowed,
    )
    small = LVLM(visual, reader, f"{lvlm.name} ({100 * fraction:g} % of the codewords)", lvlm.origin)
    return small.to(lvlm.device).eval()
