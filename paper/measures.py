"""What can be measured in a cell, by name; `fill` gives the result of one."""

from collections.abc import Callable
from typing import Any

import torch

from craft.data import Sample
from craft.evaluation.run import evaluate_lvlm
from craft.judging.answers import explain
from craft.judging.cases import BINARY, DIRECTIVE
from craft.judging.rules import offline_judge
from craft.judging.run import VerdictCache, judge_cases
from craft.models.lvlm import LVLM
from paper.cells import CRAFT, Cell, digest
from paper.pruned import pruned
from paper.work import Work


def fill(work: Work, cell: Cell) -> dict[str, Any]:
    """The result of a cell, measured now unless it is stored.

    Raises:
        CraftError: a model or data set is missing.
    """
    return MEASURES[cell.measure](work, cell)


def _keep_ratio(work: Work, cell: Cell) -> float:
    """The share of the visual tokens that the LLM sees. Pruning is part of CRAFT and uses the prior of the
    adapted encoder; zero-shot and baselines see all tokens, as in the paper's Table 4."""
    return work.plan.keep_ratio if cell.method.name == CRAFT else 1.0


def answers(work: Work, cell: Cell) -> dict[str, Any]:
    """Exact match of greedy answers (§4.1).

    Returns:
        accuracy, seen, unseen, lenient, unparseable (fractions or None), count, and `marks`, one character
        per question: "1" correct, "0" wrong.
    """

    def measure(lvlm: LVLM) -> dict[str, Any]:
        report = evaluate_lvlm(
            lvlm,
            work.samples(cell),
            keep_ratio=_keep_ratio(work, cell),
            progress=False,
            cache=work.codes,
        )
        marks = ["1" if row["strict"] else "0" for row in report.samples]
        names = ("accuracy", "seen", "unseen", "lenient", "unparseable")
        return {
            **{name: getattr(report, name) for name in names},
            "count": len(marks),
            "marks": "".join(marks),
        }

    return work.result(cell, measure)


def codes(work: Work, cell: Cell) -> dict[str, Any]:
    """How many codes of the test images the adapted tower changed.

    Returns:
        first: the share of level-1 codes that differ from the base tower's; all: the same over all levels;
        used, used_before: number of different level-1 codes in these images.
    """
    base = work.lvlm(cell.backbone, cell.method.fraction, cell.seed)

    def measure(lvlm: LVLM) -> dict[str, Any]:
        images = [sample.image for sample in work.samples(cell)]
        before, after = (work.codes.encode(m.visual, images, progress=False).tokens() for m in (base, lvlm))
        changed = (before.codes != after.codes).float()
        used = [int(torch.unique(tokens.codes[..., 0]).numel()) for tokens in (after, before)]
        return {
            "first": float(changed[..., 0].mean()),
            "all": float(changed.mean()),
            "used": used[0],
            "used_before": used[1],
        }

    return work.result(cell, measure)


def judged(work: Work, cell: Cell) -> dict[str, Any]:
    """Justified answers, judged by rules: Correctness and Presence only (§4.3, §7).

    Returns:
        correctness, presence: shares; count; rows: id, response, correctness, presence of each.
    """
    tokens = work.plan.explain_tokens

    def measure(lvlm: LVLM) -> dict[str, Any]:
        samples: list[Sample] = work.samples(cell)
        settings = {
            "method": cell.method.name,
            "lvlm": work.digest(cell),
            "samples": digest([[one.id, one.prompt(DIRECTIVE), one.seen] for one in samples]),
            "data": work.questions(cell.questions, cell.seed).fingerprint,
        }
        name = digest([settings, tokens])[:8]  # other weights, questions, pictures or lengths: another folder
        folder = work.plan.work / "judged" / work.label(cell) / name
        cases = explain(lvlm, samples, folder, settings, tokens, _keep_ratio(work, cell), batch_size=16)
        replies = judge_cases(offline_judge(), cases, VerdictCache(folder / "verdicts.jsonl"))
        rows = [
            {"id": case.id, "response": case.response, "seen": case.seen}
            | {name: bool(reply.scores[name]) for name in BINARY}
            for case, reply in zip(cases, replies, strict=True)
        ]
        shares = {name: sum(row[name] for row in rows) / len(rows) for name in BINARY}
        return {**shares, "count": len(rows), "rows": rows}

    return work.result(cell, measure)


MEASURES: dict[str, Callable[[Work, Cell], dict[str, Any]]] = {
    "answers": answers,
    "codes": codes,
    "judged": judged,
    "pruned": pruned,
}
"""By the name that a cell has."""
