"""The training objective for one batch: Eq. 5 of the paper as a list of terms.

To add a loss, add a function to `craft.losses` and a `Term` to this file.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from craft.core.tokens import VisionTokens
from craft.lessons.batches import Batch
from craft.lessons.packing import pack
from craft.lessons.retention import MIXED
from craft.losses import commitment, commitment_cumulative, contrastive, retention, surrogate_alignment
from craft.models.backbone import Backbone
from craft.models.layers import Compiled, layers_of
from craft.models.lvlm import LVLM
from craft.models.vision_tower import HybridTower, forward_of
from craft.quantize import Continuous, ResidualCodebook
from craft.training.config import CommitmentConfig, LossesConfig, SalConfig
from craft.training.lesson import Objective

UNIT = 1e-3
"""Codewords whose length differs from 1 by less have unit length; they may be stored in bfloat16."""


@dataclass(frozen=True)
class ForwardPass:
    """The output of vision tower and quantiser for one batch, which all terms read.

    Attributes:
        lvlm: the surrogate whose tower trains.
        batch: the batch.
        tokens: z, codes, z̃ and [CLS] of its images (Eq. 1).
        mixed: features `[M, N, d]` of its mixed images, or None if it has none.
        mixed_base: the features of the same images under the base tower.
    """

    lvlm: LVLM
    batch: Batch
    tokens: VisionTokens
    mixed: Tensor | None = None
    mixed_base: Tensor | None = None


@dataclass(frozen=True)
class Term:
    """One summand of Eq. 5: weight · loss.

    Attributes:
        name: the key in metrics.jsonl.
        weight: λ. A term with weight 0 is not computed, and reported as 0.
        loss: forward pass -> a scalar, scaled by the batch's `Share` of the whole step.
        reads: what the term needs in addition to features and codes.
    """

    name: str
    weight: float
    loss: Callable[[ForwardPass], Tensor]
    reads: tuple[Literal["cls", "partial_sums"], ...] = ()


def paper_terms(losses: LossesConfig, contrastive_weight: float, square: float = 1.0) -> list[Term]:
    """The three terms of Eq. 5: L_SAL + λ_commit L_commit + λ_con L_con.

    Args:
        losses: weights and reductions.
        contrastive_weight: λ_con, which may depend on the task (`AdaptConfig.contrastive_weight`).
        square: as for `commitment_term`.
    """
    return [
        sal_term(losses.sal),  # Eq. 2
        commitment_term(losses.commitment, square),  # Eq. 3
        Term("contrastive", contrastive_weight, contrastive_loss, reads=("cls",)),  # Eq. 4
    ]


def sal_term(config: SalConfig) -> Term:
    """Eq. 2: the cross-entropy of the correct answers under the frozen LLM, given image and question."""

    def loss(forward: ForwardPass) -> Tensor:
        backbone, batch = forward.lvlm.backbone, forward.batch
        inputs = answer_inputs(backbone, forward.tokens, batch)
        hidden, labels = backbone.hidden_states(inputs), inputs["labels"]
        share = batch.share.answers
        if config.reduction == "sum":  # averaged over rows; `pack` may give an image several
            share = batch.share.samples * (len(labels) / len(batch.ids))
        return share * surrogate_alignment(hidden, backbone.lm_head, labels, config.reduction)  # Eq. 2

    return Term("sal", config.weight, loss)


def answer_inputs(backbone: Backbone, tokens: VisionTokens, batch: Batch) -> dict[str, Tensor]:
    """The LLM's inputs for images, questions and answers of a batch (`Backbone.inputs`)."""
    if batch.dialogues is None:
        return backbone.inputs(tokens, batch.questions, batch.answers)
    return pack(backbone, tokens, [(True, dialogues) for dialogues in batch.dialogues])


def commitment_term(config: CommitmentConfig, square: float = 1.0) -> Term:
    """Eq. 3: the squared distance of features to their codewords.

    Args:
        config: weight, form and reduction.
        square: the mean square of an entry of the features, to which the reduction "mean" is relative
            (`mean_square`).
    """
    scale = 1 / square if config.reduction == "mean" else 1.0

    def loss(forward: ForwardPass) -> Tensor:
        tokens = forward.tokens
        if config.form == "cumulative":
            assert tokens.partial_sums is not None
            value = commitment_cumulative(tokens.features, tokens.partial_sums, config.reduction)
        else:
            value = commitment(tokens.features, tokens.quantized, config.reduction)  # Eq. 3
        return forward.batch.share.samples * scale * value

    reads = ("partial_sums",) if config.form == "cumulative" else ()
    return Term("commitment", config.weight, loss, reads)


def mean_square(codebook: ResidualCodebook | Continuous) -> float:
    """The mean square of an entry of z̃ if all codewords have unit length, else 1. Source: ours.

    Squared distances between unit vectors are at most 4, whatever d is. Their mean over d would be without
    effect if d is large (1,536 in Tar).
    """
    if isinstance(codebook, Continuous) or codebook.codewords.is_meta:
        return 1.0
    farthest = codebook.derived("distance from unit length", lambda c: (c.norm(dim=-1) - 1).abs().max())
    return codebook.num_levels / codebook.dim if float(farthest) < UNIT else 1.0


def contrastive_loss(forward: ForwardPass) -> Tensor:
    """Eq. 4: attracts [CLS] to the text of its image, and repels it from the texts of other classes.

    Those are the texts of the step's whole batch, also if this is a part of it.
    """
    tokens, batch = forward.tokens, forward.batch
    assert tokens.cls is not None and batch.texts is not None
    temperature = forward.lvlm.visual.log_temperature
    value = contrastive(  # Eq. 4
        tokens.cls, batch.texts, batch.classes, temperature, others=batch.others
    )
    return batch.share.samples * value


def retention_loss(forward: ForwardPass) -> Tensor:
    """Keeps features of mixed images close to the base tower's. Source: ours (`craft.lessons.retention`)."""
    batch = forward.batch
    if forward.mixed is None or forward.mixed_base is None:
        return forward.tokens.features.new_zeros(())
    value = retention(forward.mixed, forward.mixed_base) / mean_square(forward.lvlm.visual.codebook)
    # Relative to the expected number of mixed images, so that micro-batches add up to the whole batch.
    return batch.share.samples * (value * len(forward.mixed) / (MIXED * len(batch.ids)))


class CraftObjective(Objective):
    """The weighted sum of the terms (Eq. 5), as a module so that data parallelism can wrap it.

    Args:
        lvlm: the surrogate, with `requires_grad` set (`craft.training.checks.choose_trainable`).
        terms: the summands.
        cached_stem: batches contain the maps of the frozen stem instead of pixels.
        search: the search for codewords, a key of `craft.quantize.search.SEARCHES`.
        compiled: run the layers of tower and LLM with torch.compile.
        base: images -> features of the base tower, for mixed images (`base_features`).
        stem_frozen: the stem does not train, and `base` takes its maps.
    """

    def __init__(
        self,
        lvlm: LVLM,
        terms: Sequence[Term],
        *,
        cached_stem: bool = False,
        search: str = "exact",
        compiled: bool = False,
        base: Callable[[Tensor], Tensor] | None = None,
        stem_frozen: bool = False,
    ) -> None:
        super().__init__()
        self.lvlm = lvlm
        self.terms = tuple(terms)
        self.cached_stem = cached_stem
        self.search = search
        self.compiled = compiled
        self.base = base
        self.stem_frozen = stem_frozen
        self._layers: Compiled | None = None

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar with gradient), and its parts by name, unweighted and detached.

        The part `distance` is the mean squared distance of features to z̃, for every form of the commitment
        loss. All values are scaled by the batch's `Share`, so that those of a step's micro-batches, over all
        processes, add up to the values of the whole batch.
        """
        with self._compiled_layers():
            forward = self._forward_pass(batch)
            zero = forward.tokens.features.new_zeros(())
            parts = {term.name: term.loss(forward) if term.weight else zero for term in self.terms}
            loss = sum((term.weight * parts[term.name] for term in self.terms), start=zero)  # Eq. 5
            if not loss.requires_grad:  # the retention loss alone, and a micro-batch without mixed images
                loss = loss + 0 * forward.tokens.features.sum()
        tokens = forward.tokens
        distance = commitment(tokens.features.detach(), tokens.quantized.detach(), "mean")
        parts = {"loss": loss, **parts, "distance": batch.share.samples * distance}
        return loss, {name: value.detach() for name, value in parts.items()}

    def _compiled_layers(self) -> AbstractContextManager[None]:
        """The compiled layers, from the first call on: under FSDP2 a copy of this objective trains."""
        if not self.compiled:
            return nullcontext()
        if self._layers is None:
            self._layers = Compiled(
                [*layers_of(self.lvlm.visual.vision_tower), *layers_of(self.lvlm.backbone.llm)]
            )
        return self._layers

    def _forward_pass(self, batch: Batch) -> ForwardPass:
        visual = self.lvlm.visual
        tower = visual.vision_tower
        run = forward_of(tower, self.cached_stem)
        images, count = batch.images, len(batch.images)
        if self.base is not None and batch.mixed is not None:
            images = torch.cat([images, batch.mixed])  # one pass instead of two
            if self.stem_frozen and not self.cached_stem:
                assert isinstance(tower, HybridTower)
                images, run = tower.run_stem(images), tower.after_stem
        reads = {name for term in self.terms if term.weight for name in term.reads}
        features, cls = run(images, "cls" in reads)
        cls = None if cls is None else cls[:count]
        tokens = visual.quantize(  # z̃ = q(E_θ(x)), Eq. 1
            features[:count], cls, "partial_sums" in reads, self.search
        )
        if self.base is None or batch.mixed is None:
            return ForwardPass(self.lvlm, batch, tokens)
        return ForwardPass(self.lvlm, batch, tokens, features[count:], self.base(images[count:]))
