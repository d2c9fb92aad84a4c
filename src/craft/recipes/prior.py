"""`craft prior`: how common each level-1 code is in a set of pictures, to prune by (§3.3)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from craft.core.errors import ConfigError, DataError
from craft.core.files import check_writable
from craft.data.load import as_setting
from craft.formats.code_cache import CodeCache
from craft.formats.encoder import load_artefact
from craft.formats.load import load
from craft.formats.prior import load_prior, save_prior
from craft.models.lvlm import LVLM
from craft.quantize import code_counts, usage
from craft.recipes.questions import check_limit, questions_for

DEFAULT = "craft-tiny/qwen2"
"""Whose visual tokenizer counts, where neither a model nor an encoder is given."""

GENERAL = "general"
"""`prior="general"`: the counts that came with the model, of the pictures its tokenizer was trained on."""


@dataclass(frozen=True)
class Prior:
    """A code prior that was counted.

    Attributes:
        counts: level-1 code counts int64 `[K]`.
        images: how many distinct pictures were counted.
        data: the data set's name.
        used: share of the codewords that occur.
        perplexity: of their distribution; K where all are as common.
        out: the file it was written to, or None.
    """

    counts: Tensor = field(repr=False)
    images: int
    data: str
    used: float
    perplexity: float
    out: Path | None


def build_prior(
    data: str | Path,
    model: str | Path | LVLM | None = None,
    encoder: str | Path | None = None,
    out: str | Path | None = None,
    *,
    seed: int | None = None,
    limit: int | None = None,
    root: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Prior:
    """Count the level-1 codes of a data set's training images.

    With the encoder that was adapted to this data, these are the counts that came with it: held-out classes
    are left out. The paper's other check, a prior from a general corpus, is this function on that corpus.

    Args:
        data: as `craft.adapt` takes it.
        model: whose visual tokenizer; None is the encoder's surrogate, or `DEFAULT`.
        encoder: a run folder or artefact whose tower is used; None is the model's own tower.
        out: a file for the counts, as `evaluate(prior=...)` takes it.
        seed: of held-out classes (without an encoder of this data).
        limit: at most this many images, in the data's order.
        root, device, dtype: as in `craft.evaluate`.

    Raises:
        CodebookMismatchError, CheckpointError, DataError, ConfigError: as `craft.evaluate`.

    Source: §3.3, p_dom(k).
    """
    check_limit(limit)
    if out is not None:
        check_writable(out)
    artefact = None if encoder is None else load_artefact(encoder)
    manifest = {} if artefact is None else artefact.manifest
    if model is None:
        model = (artefact and artefact.surrogate) or DEFAULT
    lvlm = model if isinstance(model, LVLM) else load(model, device, dtype)
    codebook = lvlm.visual.need_codes("A code prior")
    visual = (lvlm if artefact is None else lvlm.with_encoder(artefact)).visual
    wanted = {"name": as_setting(data), "root": None if root is None else str(root)}
    given = questions_for(wanted, seed, manifest, lambda: lvlm)
    images = [sample.image for sample in given.samples("train")][:limit]
    if not images:
        raise DataError(f"{given.name} has no training images to count codes on.")
    codes = CodeCache().encode(visual, images).codes[..., :1].long()
    counts = code_counts(codes, visual.codebook.size)
    told = usage(codes, visual.codebook.size)[0]
    if out is not None:
        about = {"data": given.name, "images": str(len(codes)), "tower": str(manifest.get("tower") or "base")}
        out = save_prior(out, counts, codebook, about)
    return Prior(counts, len(codes), given.name, told["used"], told["perplexity"], out)


def chosen_prior(prior: str | Path, base: LVLM) -> Tensor:
    """The code counts that `prior` names.

    Args:
        prior: "general" (those of `base`), a file of `craft prior`, or a folder with one.
        base: the LVLM as it was loaded, without an adapted encoder.

    Raises:
        ConfigError: "general", and none came with the model.
        CheckpointError, CodebookMismatchError: as `craft.formats.prior.load_prior`.
        CraftError: the LVLM is continuous.
    """
    codebook = base.visual.need_codes("A code prior")
    if str(prior) != GENERAL:
        return load_prior(prior, codebook)
    counts: Any = base.visual.prior
    if counts is None:
        raise ConfigError(
            f"{base.name} came without a general code prior. Count one on pictures of all kinds with `craft "
            "prior DATA --model MODEL --out FILE`, and give --prior FILE."
        )
    return counts
