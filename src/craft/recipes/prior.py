"""`craft prior`: how often each level-1 code occurs in a set of images, for pruning (§3.3)."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from craft.core.errors import ConfigError, DataError
from craft.formats.artefact import Artefact
from craft.formats.code_cache import CodeCache
from craft.formats.load import load_artefact
from craft.formats.prior import load_prior, save_prior
from craft.models.lvlm import LVLM
from craft.quantize import ResidualCodebook, code_counts, usage
from craft.recipes.arguments import ModelSource, data_name, loaded, surrogate_of
from craft.recipes.questions import check_limit, questions_for

DEFAULT = "craft-tiny/qwen2"
"""The model whose visual tokenizer is used if neither a model nor an encoder is named."""

GENERAL = "general"
"""`prior="general"`: the counts that came with the model, on the images that trained its tokenizer."""


@dataclass(frozen=True)
class Prior:
    """A code prior.

    Attributes:
        counts: level-1 code counts int64 `[K]`.
        codebook: the codebook of the codes.
        images: the number of distinct images.
        data: the name of the data set.
        tower: hash of the adapted vision tower, or "base".
        used: share of the codewords that occur.
        perplexity: of the distribution of codes; K if all codes are equally frequent.
    """

    counts: Tensor = field(repr=False)
    codebook: ResidualCodebook = field(repr=False)
    images: int
    data: str
    tower: str
    used: float
    perplexity: float

    def save(self, path: str | Path) -> Path:
        """Write the counts to a file that `evaluate(prior=...)` accepts, and return its path.

        Raises:
            ConfigError: the file cannot be written.
        """
        origin = {"data": self.data, "images": str(self.images), "tower": self.tower}
        return save_prior(path, self.counts, self.codebook, origin)


def build_prior(
    data: str | Path,
    model: str | Path | LVLM | None = None,
    encoder: str | Path | None = None,
    *,
    seed: int | None = None,
    limit: int | None = None,
    root: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Prior:
    """Count the level-1 codes of a data set's training images.

    With the encoder that was adapted to this data, the result equals the counts that came with the encoder:
    held-out classes are left out. For the paper's other prior, on a general corpus, pass that corpus as data.

    Args:
        data: as for `craft.adapt`.
        model: the LVLM whose visual tokenizer is used; by default the encoder's surrogate if that is a
            shipped model, and `DEFAULT` without an encoder.
        encoder: a run folder or artefact whose tower is used; by default the model's own tower.
        seed: for the choice of held-out classes, if the encoder was not adapted to this data.
        limit: at most this many images, in the order of the data.
        root, device, dtype: as for `craft.evaluate`.

    Raises:
        CodebookMismatchError, CheckpointError, DataError, ConfigError: as for `craft.evaluate`.

    Source: §3.3, p_dom(k).
    """
    check_limit(limit)
    lvlm, artefact = open_tower(model, encoder, device, dtype)
    manifest = {} if artefact is None else artefact.manifest
    codebook = lvlm.visual.need_codes("A code prior")
    visual = (lvlm if artefact is None else lvlm.with_encoder(artefact)).visual
    named = {"name": data_name(data), "root": None if root is None else str(root)}
    questions = questions_for(named, seed, manifest, lambda: lvlm)
    images = [sample.image for sample in questions.samples("train")][:limit]
    if not images:
        raise DataError(f"{questions.name} has no training images whose codes can be counted.")
    codes = CodeCache().encode(visual, images).codes[..., :1].long()
    level_1 = usage(codes, codebook.size)[0]
    return Prior(
        counts=code_counts(codes, codebook.size),
        codebook=codebook,
        images=len(codes),
        data=questions.name,
        tower=str(manifest.get("tower") or "base"),
        used=level_1["used"],
        perplexity=level_1["perplexity"],
    )


def open_tower(
    model: ModelSource | None, encoder: str | Path | None, device: str | None, dtype: str | None
) -> tuple[LVLM, Artefact | None]:
    """The model, by default the encoder's surrogate if that is shipped, or `DEFAULT`; and the encoder.

    Raises:
        CheckpointError: one of them is missing or damaged.
        ConfigError: no model is named, and the encoder's surrogate is not a shipped one.
    """
    artefact = None if encoder is None else load_artefact(encoder)
    if model is None:
        model = DEFAULT if artefact is None else surrogate_of(artefact)
    return loaded(model, device, dtype), artefact


def chosen_prior(prior: str | Path, base: LVLM) -> Tensor:
    """The code counts that `prior` names.

    Args:
        prior: "general" (the counts of `base`), a file of `craft prior`, or a folder that contains one.
        base: the LVLM as it was loaded, without an adapted encoder.

    Raises:
        ConfigError: `prior` is "general", and no counts came with the model.
        CheckpointError, CodebookMismatchError: as for `craft.formats.prior.load_prior`.
        CraftError: the LVLM is continuous.
    """
    codebook = base.visual.need_codes("A code prior")
    if str(prior) != GENERAL:
        return load_prior(prior, codebook)
    counts: Tensor | None = base.visual.prior
    if counts is None:
        raise ConfigError(
            f"{base.name} came without a general code prior. Count one on varied images with `craft "
            "prior DATA --model MODEL --out FILE`, and pass --prior FILE."
        )
    return counts
