"""Answers under one way of pruning: what the pruning experiments measure, from codes encoded once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from craft.core.files import hash_tensors
from craft.evaluation import Report, lenient, strict, unparseable
from craft.experiments.work import Work
from craft.models.attention import cls_attention, received_attention
from craft.models.code_cache import ImageCodes
from craft.pruning import prune_tokens
from craft.recipes.prior import GENERAL, chosen_prior
from craft.recipes.questions import take

FASTV_LAYER = 2
"""The LLM layer whose attention FastV goes by (its K)."""

_BATCH = 64


@dataclass(frozen=True)
class How:
    """One way of pruning.

    Attributes:
        strategy: a key of `craft.pruning.STRATEGIES`.
        keep: keep ratio; at 1 nothing else matters.
        prior: "own" (the encoder's training images) or "general" (the model's).
        keep_positions: kept tokens keep their positions.
        options: further arguments of `prune_tokens`, as sorted pairs.
    """

    strategy: str = "full"
    keep: float = 1.0
    prior: str = "own"
    keep_positions: bool = False
    options: tuple[tuple[str, Any], ...] = ()


class Subject:
    """One backbone behind one adapted encoder, with the questions that it is asked.

    Args:
        work: where models, encoders and codes come from.
        domain, seed: which encoder and questions.
        backbone: which model.
        split: "test" or "validation".
    """

    def __init__(self, work: Work, domain: str, seed: int, backbone: str, split: Any = "test") -> None:
        self.work, self.domain, self.seed, self.backbone, self.split = work, domain, seed, backbone, split
        self.artefact = work.encoder(domain, seed)
        self.data = work.questions(domain, seed)
        self.samples = take(self.data.samples(split), work.plan.limit, seed)
        self.prompts = [sample.prompt() for sample in self.samples]

    @cached_property
    def lvlm(self) -> Any:
        """The backbone behind the adapted encoder."""
        return self.work.lvlm(self.backbone).with_encoder(self.artefact)

    @cached_property
    def images(self) -> ImageCodes:
        """The questions' images as codes; the tower runs for those that were never encoded."""
        return self.work.codes.encode(self.lvlm.visual, [sample.image for sample in self.samples])

    @cached_property
    def cls_scores(self) -> Tensor:
        """[CLS] attention of every image, float32 `[S, N]`."""
        return cls_attention(self.lvlm.visual, [sample.image for sample in self.samples], _BATCH)

    @cached_property
    def fastv_scores(self) -> Tensor:
        """Attention that the image's tokens receive in the LLM, float32 `[S, N]`."""
        found = torch.zeros(len(self.samples), self.images.tokens([0]).codes.shape[1])
        for chosen in self.batches:
            asked = [self.prompts[index] for index in chosen]
            tokens = self.images.tokens(chosen)
            found[chosen] = received_attention(self.lvlm.backbone, tokens, asked, FASTV_LAYER).cpu()
        return found

    @cached_property
    def batches(self) -> list[list[int]]:
        """Indices of questions of similar length."""
        lengths = [len(self.lvlm.backbone.tokenizer(prompt)["input_ids"]) for prompt in self.prompts]
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        return [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]

    def prior(self, name: str) -> Tensor:
        """Level-1 code counts: "own" or "general"."""
        return (
            chosen_prior(GENERAL, self.work.lvlm(self.backbone)) if name == GENERAL else self.artefact.prior
        )

    def ask(self, how: How) -> dict[str, Any]:
        """Accuracy and its company under one way of pruning; from the cells on disk where it is known.

        Returns:
            accuracy, seen, unseen, unparseable (fractions or None), count, `marks` (one "1" or "0" per
            question: right or wrong), `floor` (share of images with more codes than tokens kept), `codes`
            (mean number of different level-1 codes per image).
        """
        key = {
            "measured": "answers under pruning",
            "tower": self.artefact.manifest["tower"],
            "backbone": self.work.parts[self.backbone],
            "data": self.data.fingerprint,
            "seed": self.seed,
            "split": self.split,
            "limit": self.work.plan.limit,
            "dtype": self.work.plan.dtype,
            "prior": hash_tensors({"counts": self.prior(how.prior)}) if how.keep < 1 else None,
            "how": asdict(how) if how.keep < 1 else None,
        }
        return self.work.cell(key, lambda: self._measure(how))

    def _measure(self, how: How) -> dict[str, Any]:
        scores = {"cls-attention": "cls_scores", "fastv": "fastv_scores"}.get(how.strategy)
        weights = getattr(self, scores) if scores and how.keep < 1 else None
        answers: dict[int, str] = {}
        floors, codes = 0.0, 0.0
        for chosen in self.batches:
            whole = self.images.tokens(chosen)
            tokens = prune_tokens(
                whole,
                self.prior(how.prior),
                how.keep,
                strategy=how.strategy,
                scores=None if weights is None else weights[chosen],
                seed=self.seed,
                **dict(how.options),  # type: ignore[arg-type]
            )
            asked = [self.prompts[index] for index in chosen]
            said = self.lvlm.answer(tokens, asked, batch_size=_BATCH, keep_positions=how.keep_positions)
            answers |= dict(zip(chosen, said, strict=True))
            floors += 0.0 if tokens.floor_hit is None else float(tokens.floor_hit.sum())
            codes += sum(len(set(row)) for row in whole.codes[..., 0].tolist())
        rows = [self._marked(index, answers[index]) for index in range(len(self.samples))]
        report = Report.of(rows)
        return {
            **{name: getattr(report, name) for name in ("accuracy", "seen", "unseen", "unparseable")},
            "count": len(rows),
            "marks": "".join("1" if row["strict"] else "0" for row in rows),
            "floor": floors / len(rows),
            "codes": codes / len(rows),
        }

    def _marked(self, index: int, said: str) -> dict[str, Any]:
        sample = self.samples[index]
        return {
            "strict": strict(said, sample.answer),
            "lenient": lenient(said, sample),
            "unparseable": unparseable(said, sample),
            "seen": sample.seen,
            "choices": list(sample.choices),
        }


def marks(found: dict[str, Any]) -> np.ndarray:
    """Right and wrong per question, float64 in {0, 1}."""
    return np.frombuffer(found["marks"].encode(), dtype=np.uint8).astype(np.float64) - ord("0")


def subjects(work: Work, split: str = "test") -> Sequence[Subject]:
    """All domains, seeds and backbones of the plan, in that order."""
    plan = work.plan
    return [
        Subject(work, domain, seed, backbone, split)
        for domain in plan.domains
        for seed in plan.seeds
        for backbone in plan.backbones
    ]
