"""Answers under one way of pruning: what the pruning experiments measure, from codes encoded once."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from craft.core.files import hash_tensors
from craft.evaluation import Report, lenient, strict, unparseable
from craft.experiments.cells import CRAFT, Cell, Method
from craft.experiments.plan import Plan
from craft.experiments.work import Work
from craft.formats.code_cache import ImageCodes
from craft.models.attention import cls_attention, received_attention
from craft.pruning import prune_tokens
from craft.recipes.prior import GENERAL, chosen_prior

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
        self.samples = work.samples(self.cell(How()), split)
        self.prompts = [sample.prompt() for sample in self.samples]

    def cell(self, how: How) -> Cell:
        """The cell of one way of pruning."""
        return pruned_cell(self.work.plan, self.domain, self.seed, self.backbone, how, self.split)

    @cached_property
    def lvlm(self) -> Any:
        """The backbone behind the adapted encoder."""
        return self.work.made(self.cell(How()))

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
        base = self.work.lvlm(self.backbone)
        return chosen_prior(GENERAL, base) if name == GENERAL else self.lvlm.visual.prior

    def ask(self, how: How) -> dict[str, Any]:
        """Accuracy and its company under one way of pruning; from the cells on disk where it is known.

        Returns:
            accuracy, seen, unseen, unparseable (fractions or None), count, `marks` (one "1" or "0" per
            question: right or wrong), `floor` (share of images with more codes than tokens kept), `codes`
            (mean number of different level-1 codes per image).
        """
        prior = hash_tensors({"counts": self.prior(how.prior)}) if how.keep < 1 else None
        return self.work.cell(self.cell(how), lambda _: self._measure(how), {"pruned by": prior})

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


def pruned_cell(plan: Plan, domain: str, seed: int, backbone: str, how: How, split: str = "test") -> Cell:
    """The cell of a backbone behind the encoder of the plan's first surrogate, under one way of pruning."""
    detail = {"split": split, "how": asdict(how) if how.keep < 1 else None}
    method = Method(CRAFT, plan.surrogates[0])
    return Cell("pruned", domain, seed, backbone, method, domain, plan.limit, json.dumps(detail))


def pruned_cells(plan: Plan, ways: Iterable[How], split: str = "test") -> list[Cell]:
    """Every way of pruning for all domains, seeds and backbones of a plan."""
    ways = list(ways)
    return [
        pruned_cell(plan, domain, seed, backbone, how, split)
        for domain in plan.domains
        for seed in plan.seeds
        for backbone in plan.backbones
        for how in ways
    ]


def check_priors(work: Work, cells: Iterable[Cell]) -> None:
    """What cells with the general prior need, before anything is trained.

    Raises:
        ConfigError: a backbone came without one.
    """
    hows = {(cell.backbone, cell.detail) for cell in cells if cell.measure == "pruned"}
    asked = {name for name, detail in hows if (json.loads(detail)["how"] or {}).get("prior") == GENERAL}
    for name in sorted(asked):
        chosen_prior(GENERAL, work.lvlm(name))


def pruned(work: Work, cell: Cell) -> dict[str, Any]:
    """What `Subject.ask` measures, of a cell of `pruned_cell`."""
    detail = json.loads(cell.detail)
    told = detail["how"] or {}
    options = tuple((name, value) for name, value in told.pop("options", ()))
    subject = _subject(work, cell.domain, cell.seed, cell.backbone, detail["split"])
    return subject.ask(How(**told, options=options))


@lru_cache(maxsize=1)
def _subject(work: Work, domain: str, seed: int, backbone: str, split: str) -> "Subject":
    """The last one is kept: attention is measured once for all ways."""
    return Subject(work, domain, seed, backbone, split)


def subjects(work: Work, split: str = "test") -> Iterator[Subject]:
    """All domains, seeds and backbones of the plan, in that order; one at a time, since each has a vision
    tower of its own."""
    plan = work.plan
    for domain, seed, backbone in product(plan.domains, plan.seeds, plan.backbones):
        yield Subject(work, domain, seed, backbone, split)
