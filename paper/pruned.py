"""Answers with pruned tokens: what the pruning experiments measure, from codes encoded once."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from craft.core.tensors import hash_tensors
from craft.evaluation.matching import lenient, strict, unparseable
from craft.evaluation.report import Report
from craft.formats.code_cache import ImageCodes
from craft.pruning import PruningSettings, prune_tokens
from craft.recipes.prior import GENERAL, chosen_prior
from paper.attention import cls_attention, received_attention
from paper.cells import CRAFT, Cell, Method
from paper.plan import Plan
from paper.work import Work

FASTV_LAYER = 2
"""The LLM layer whose attention FastV uses (its K)."""

_BATCH = 64


@dataclass(frozen=True)
class Pruning:
    """How tokens are pruned.

    Attributes:
        strategy: a key of `craft.pruning.STRATEGIES`.
        keep: keep ratio; at 1 the other fields have no effect.
        prior: "own" (the encoder's training images) or "general" (the model's).
        keep_positions: the remaining tokens keep their positions.
        options: further fields of `PruningSettings`, as sorted pairs.
    """

    strategy: str = "full"
    keep: float = 1.0
    prior: str = "own"
    keep_positions: bool = False
    options: tuple[tuple[str, Any], ...] = ()


class Subject:
    """One backbone with one adapted encoder, and its questions.

    Args:
        work: the plan and its work folder.
        domain, seed: which encoder and questions.
        backbone: which model.
        split: "test" or "validation".
    """

    def __init__(self, work: Work, domain: str, seed: int, backbone: str, split: Any = "test") -> None:
        self.work, self.domain, self.seed, self.backbone, self.split = work, domain, seed, backbone, split
        self.samples = work.samples(self.cell(Pruning()), split)
        self.prompts = [sample.prompt() for sample in self.samples]

    def cell(self, pruning: Pruning) -> Cell:
        """The cell of one pruning."""
        return pruned_cell(self.work.plan, self.domain, self.seed, self.backbone, pruning, self.split)

    @cached_property
    def lvlm(self) -> Any:
        """The backbone with the adapted encoder."""
        return self.work.made(self.cell(Pruning()))

    @cached_property
    def images(self) -> ImageCodes:
        """The questions' images as codes; the tower runs only for images that were never encoded."""
        return self.work.codes.encode(self.lvlm.visual, [sample.image for sample in self.samples])

    @cached_property
    def cls_scores(self) -> Tensor:
        """[CLS] attention of every image, float32 `[S, N]`."""
        return cls_attention(self.lvlm.visual, [sample.image for sample in self.samples], _BATCH)

    @cached_property
    def fastv_scores(self) -> Tensor:
        """Attention that the image's tokens receive in the LLM, float32 `[S, N]`."""
        scores = torch.zeros(len(self.samples), self.images.tokens([0]).codes.shape[1])
        for chosen in self.batches:
            prompts = [self.prompts[index] for index in chosen]
            tokens = self.images.tokens(chosen)
            scores[chosen] = received_attention(self.lvlm.backbone, tokens, prompts, FASTV_LAYER).cpu()
        return scores

    @cached_property
    def batches(self) -> list[list[int]]:
        """Indices of questions of similar length."""
        lengths = [len(self.lvlm.backbone.tokenizer(prompt)["input_ids"]) for prompt in self.prompts]
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        return [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]

    def prior(self, name: str) -> Tensor:
        """Level-1 code counts: "own" or "general"."""
        base = self.work.lvlm(self.backbone)
        return chosen_prior(GENERAL, base) if name == GENERAL else self.lvlm.visual.prior

    def ask(self, pruning: Pruning) -> dict[str, Any]:
        """The answers with pruned tokens, measured now unless the cell is stored.

        Returns:
            accuracy, seen, unseen, unparseable (fractions or None), count, `marks` (one "1" or "0" per
            question: correct or wrong), `floor` (share of images with more codes than tokens kept), `codes`
            (mean number of different level-1 codes per image).
        """
        prior = hash_tensors({"counts": self.prior(pruning.prior)}) if pruning.keep < 1 else None
        return self.work.result(self.cell(pruning), lambda _: self._measure(pruning), {"pruned by": prior})

    def _measure(self, pruning: Pruning) -> dict[str, Any]:
        scores = {"cls-attention": "cls_scores", "fastv": "fastv_scores"}.get(pruning.strategy)
        weights = getattr(self, scores) if scores and pruning.keep < 1 else None
        answers: dict[int, str] = {}
        floors, codes = 0.0, 0.0
        for chosen in self.batches:
            whole = self.images.tokens(chosen)
            tokens = prune_tokens(
                whole,
                self.prior(pruning.prior),
                pruning.keep,
                strategy=pruning.strategy,
                scores=None if weights is None else weights[chosen],
                settings=PruningSettings(seed=self.seed, **dict(pruning.options)),
            )
            prompts = [self.prompts[index] for index in chosen]
            texts = self.lvlm.answer(
                tokens, prompts, batch_size=_BATCH, keep_positions=pruning.keep_positions
            )
            answers |= dict(zip(chosen, texts, strict=True))
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

    def _marked(self, index: int, text: str) -> dict[str, Any]:
        sample = self.samples[index]
        return {
            "strict": strict(text, sample.answer),
            "lenient": lenient(text, sample),
            "unparseable": unparseable(text, sample),
            "seen": sample.seen,
            "choices": list(sample.choices),
        }


def pruned_cell(
    plan: Plan, domain: str, seed: int, backbone: str, pruning: Pruning, split: str = "test"
) -> Cell:
    """The cell of a backbone with the encoder of the plan's first surrogate, and pruned tokens."""
    detail = {"split": split, "pruning": asdict(pruning) if pruning.keep < 1 else None}
    method = Method(CRAFT, plan.surrogates[0])
    return Cell("pruned", domain, seed, backbone, method, domain, plan.limit, json.dumps(detail))


def pruned_cells(plan: Plan, prunings: Iterable[Pruning], split: str = "test") -> list[Cell]:
    """Every pruning for all domains, seeds and backbones of a plan."""
    every = product(plan.domains, plan.seeds, plan.backbones, prunings)
    return [pruned_cell(plan, *one, split) for one in every]


def check_priors(work: Work, cells: Iterable[Cell]) -> None:
    """Check before anything is trained that models have the general priors that cells need.

    Raises:
        ConfigError: a backbone came without one.
    """
    details = {(cell.backbone, cell.detail) for cell in cells if cell.measure == "pruned"}
    for name, detail in sorted(details):
        if (json.loads(detail)["pruning"] or {}).get("prior") == GENERAL:
            chosen_prior(GENERAL, work.lvlm(name))


def pruned(work: Work, cell: Cell) -> dict[str, Any]:
    """The result of a cell of `pruned_cell`: see `Subject.ask`."""
    detail = json.loads(cell.detail)
    fields = detail["pruning"] or {}
    options = tuple((name, value) for name, value in fields.pop("options", ()))
    subject = _subject(work, cell.domain, cell.seed, cell.backbone, detail["split"])
    return subject.ask(Pruning(**fields, options=options))


@lru_cache(maxsize=1)
def _subject(work: Work, domain: str, seed: int, backbone: str, split: str) -> "Subject":
    """The last subject stays in memory, so that attention is measured once for all prunings."""
    return Subject(work, domain, seed, backbone, split)


def subjects(work: Work, split: str = "test") -> Iterator[Subject]:
    """All domains, seeds and backbones of the plan, one at a time: each has its own vision tower."""
    plan = work.plan
    for domain, seed, backbone in product(plan.domains, plan.seeds, plan.backbones):
        yield Subject(work, domain, seed, backbone, split)
