"""The training objective: Eq. 2 to 5 of the paper, for one batch."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.errors import ConfigError
from craft.core.processes import gather, world
from craft.core.seeding import rng
from craft.core.tokens import VisionTokens
from craft.data import Sample
from craft.lessons.align import pack
from craft.lessons.retention import MIXED
from craft.losses import commitment, commitment_cumulative, contrastive, retention, surrogate_alignment
from craft.models.compiled import Compiled, layers_of
from craft.models.lvlm import LVLM
from craft.models.prefix import Prefix, hidden_behind, read_prefix
from craft.models.prompts import Dialogue
from craft.models.visual_tokenizer import VisualTokenizer
from craft.training.config import LossesConfig
from craft.training.lesson import WHOLE, Share


@dataclass(frozen=True)
class Batch:
    """One (micro-)batch.

    Attributes:
        ids: the samples', for messages.
        images: pixels `[B, 3, S, S]`, or the frozen stem's maps `[B, C, h, w]`.
        questions, answers: t and y of Eq. 2, one of each per image.
        dialogues: per image the dialogues that SAL learns in their place, where there are several.
        texts: embeddings `[B, d]` of the sampled texts, or None without a contrastive loss.
        classes: int64 `[B]`, y of Eq. 4.
        mixed: `[M, …]`, pictures of no class for the retention loss; None where there are none.
        share: how much of the step's whole batch this is.
    """

    ids: tuple[str, ...]
    images: Tensor
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    texts: Tensor | None
    classes: Tensor
    dialogues: tuple[tuple[Dialogue, ...], ...] | None = None
    mixed: Tensor | None = None
    share: Share = WHOLE


class TextTable:
    """Embeddings of every text of a training set under the frozen text encoder, computed once.

    Args:
        visual: its text encoder is used.
        samples: the training set.
        seed: of the choice among a sample's texts.

    Raises:
        ConfigError: there is no text encoder, or its width is not d.

    Source: §3.2, T_i = {ground-truth text} ∪ {captions}, one of them per step.
    """

    @torch.no_grad()
    def __init__(self, visual: VisualTokenizer, samples: Sequence[Sample], seed: int) -> None:
        if visual.text_encoder is None:
            raise ConfigError(
                "The contrastive loss needs the visual tokenizer's frozen text encoder, and this one came "
                "without; use a surrogate that has it, or set losses.contrastive.weight to 0."
            )
        self.seed = seed
        texts = sorted({text for sample in samples for text in sample.texts()})
        self.rows = {text: row for row, text in enumerate(texts)}
        encode: Any = visual.text_encoder.encode
        parts = [encode(texts[start : start + 256]).float() for start in range(0, len(texts), 256)]
        self.embeddings = torch.cat(parts)
        width = int(visual.vision_tower.dim)  # type: ignore[arg-type]
        if self.embeddings.shape[1] != width:
            raise ConfigError(
                f"The text encoder's embeddings have width {self.embeddings.shape[1]} and [CLS] has {width}; "
                "set losses.contrastive.weight to 0, or use a tokenizer whose text encoder fits."
            )

    def sample(self, samples: Sequence[Sample], step: int) -> Tensor:
        """One text per image, `[B, d]`: a pure function of seed, step and sample id (t̃_i of §3.2)."""
        rows = [self.rows[rng(self.seed, "text", step, s.id).choice(s.texts())] for s in samples]
        return self.embeddings[torch.tensor(rows, device=self.embeddings.device)]


def class_numbers(samples: Sequence[Sample]) -> dict[str, int]:
    """A number for every class of Eq. 4: the label, or without labels the ground-truth text."""
    return {name: number for number, name in enumerate(sorted({class_of(sample) for sample in samples}))}


def class_of(sample: Sample) -> str:
    """y_i of Eq. 4: two samples that share it are never each other's negatives."""
    return sample.label if sample.label is not None else sample.texts()[0]


class CraftObjective(nn.Module):
    """L = L_SAL + λ_commit L_commit + λ_con L_con (Eq. 5), and with `base` the retention loss, which is ours;
    as a module so that data parallelism can wrap it.

    Args:
        lvlm: the surrogate; which of its parameters train is settled elsewhere.
        losses: weights and reductions.
        contrastive_weight: λ_con.
        from_stem: batches hold the frozen stem's maps instead of pixels.
        search: how codewords are found (`craft.quantize.search.SEARCHES`).
        prefix_cache: read the text before the image once, when it is first needed.
        compiled: run the layers of tower and LLM as torch.compile has them; the LLM's only without
            `prefix_cache`.
        base: images -> features of the tower before training; None leaves the retention loss out.
        base_from_stem: `base` takes the stem's maps, which no training changes.
        retention_weight: of that loss.
    """

    def __init__(
        self,
        lvlm: LVLM,
        losses: LossesConfig,
        contrastive_weight: float,
        from_stem: bool = False,
        search: str = "exact",
        prefix_cache: bool = False,
        compiled: bool = False,
        base: Callable[[Tensor], Tensor] | None = None,
        base_from_stem: bool = False,
        retention_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.lvlm = lvlm
        self.losses = losses
        self.contrastive_weight = contrastive_weight
        self.from_stem = from_stem
        self.search = search
        self.prefix_cache = prefix_cache
        self.compiled = compiled
        self.base = base
        self.base_from_stem = base_from_stem
        self.retention_weight = retention_weight
        self._prefix: Prefix | None = None
        self._layers: Compiled | None = None

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar with gradient) and its parts, unweighted and detached, with `distance`: the mean
        squared distance of features to z̃, whatever the reduction. All are scaled by the batch's share:
        those of a step's micro-batches, in all processes, add up to those of the whole batch."""
        with self._compiled_layers():
            return self._loss(batch)

    def _compiled_layers(self) -> AbstractContextManager[None]:
        """Late, since under FSDP2 the objective that trains is a copy of the one that was made."""
        if not self.compiled:
            return nullcontext()
        if self._layers is None:
            read = () if self.prefix_cache else layers_of(self.lvlm.backbone.llm)
            self._layers = Compiled([*layers_of(self.lvlm.visual.vision_tower), *read])
        return self._layers

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        visual, backbone, losses = self.lvlm.visual, self.lvlm.backbone, self.losses
        samples, answers = batch.share.samples, batch.share.answers
        cumulative = losses.commitment.form == "cumulative"
        features, cls, keep = self._features(batch)
        tokens = visual.quantize(features, cls, cumulative, self.search)  # z, z̃ = q(E_θ(x)), Eq. 1

        zero = tokens.features.new_zeros(())
        sal = zero
        if losses.sal.weight:
            hidden, labels = self._read(tokens, batch)
            rows = len(labels) / len(batch.ids)  # per image: `pack` may give each dialogue its own
            share = answers if losses.sal.reduction == "mean" else samples * rows
            sal = share * surrogate_alignment(hidden, backbone.lm_head, labels, losses.sal.reduction)  # Eq. 2

        if cumulative:
            assert tokens.partial_sums is not None
            commit = commitment_cumulative(tokens.features, tokens.partial_sums, losses.commitment.reduction)
        else:
            commit = commitment(tokens.features, tokens.quantized, losses.commitment.reduction)  # Eq. 3
        commit = samples * commit

        con = zero
        if self.contrastive_weight:
            assert tokens.cls is not None and batch.texts is not None
            others = (gather(batch.texts), gather(batch.classes)) if world() > 1 else None
            con = samples * contrastive(  # Eq. 4
                tokens.cls, batch.texts, batch.classes, visual.log_temperature, others=others
            )

        loss = (  # Eq. 5
            losses.sal.weight * sal + losses.commitment.weight * commit + self.contrastive_weight * con
        )
        distance = samples * commitment(tokens.features.detach(), tokens.quantized.detach(), "mean")
        parts = {"loss": loss, "sal": sal, "commitment": commit, "contrastive": con, "distance": distance}
        if keep is not None:
            parts["retention"] = samples * keep
            parts["loss"] = loss = loss + self.retention_weight * parts["retention"]
        return loss, {name: value.detach() for name, value in parts.items()}

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Features `[B, N, d]`; [CLS] `[B, d]` where Eq. 4 needs it; the retention loss where it counts."""
        tower: Any = self.lvlm.visual.vision_tower
        run: Any = tower.after_stem if self.from_stem else tower
        images, with_cls = batch.images, bool(self.contrastive_weight)
        if self.base is None:
            return *run(images, with_cls), None
        if batch.mixed is None:
            return *run(images, with_cls), images.new_zeros(())
        seen = torch.cat([images, batch.mixed])  # one pass: half the launches of two
        if self.base_from_stem and not self.from_stem:
            seen, run = tower.run_stem(seen), tower.after_stem
        features, cls = run(seen, with_cls)
        count, mixed = len(images), len(batch.mixed)
        keep = retention(features[count:], self.base(seen[count:]))
        keep = keep * mixed / (MIXED * count)  # however many it has: micro-batches add up to the whole
        return features[:count], None if cls is None else cls[:count], keep

    def _read(self, tokens: VisionTokens, batch: Batch) -> tuple[Tensor, Tensor]:
        """The LLM's last hidden states `[B, T, h]` and the labels int64 `[B, T]`; both without a prefix that
        was read before."""
        backbone = self.lvlm.backbone
        if batch.dialogues is None:
            inputs = backbone.inputs(tokens, batch.questions, batch.answers)
        else:
            inputs = pack(backbone, tokens, [(True, listed) for listed in batch.dialogues])
        if not self.prefix_cache:
            return backbone.hidden_states(inputs), inputs["labels"]
        if self._prefix is None:
            self._prefix = read_prefix(backbone)
        return hidden_behind(backbone, self._prefix, inputs), inputs["labels"][:, self._prefix.length :]
