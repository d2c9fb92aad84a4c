"""The figures of a judge: means and intervals by dimension, over seen and unseen classes (§4.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from craft.evaluation.metrics import Group, images_of, interval, mean
from craft.judging.cases import BINARY, DIMENSIONS, GRADED, STATUSES, Case, Reply

Figures = dict[str, dict[str, Any] | None]

BOUNDS = {
    **dict.fromkeys(BINARY, (0.0, 1.0)),
    **dict.fromkeys(GRADED, (0.0, 5.0)),
    "overall": (-2.5, 10.0),
}
"""The smallest and the largest value of every figure. Source: §4.3."""


def overall(scores: Mapping[str, bool | int]) -> float | None:
    """Faithfulness + Relevance − Verbosity / 2; None if a part is missing. Source: §4.3."""
    if not set(GRADED) <= set(scores):
        return None
    return scores["faithfulness"] + scores["relevance"] - scores["verbosity"] / 2


@dataclass
class JudgeReport:
    """The figures of one judge on one set of answers.

    Attributes:
        figures: by dimension, and "overall": mean, 95 % interval over images and count, over the cases with
            a verdict; None if the judge does not score the dimension. Correctness and presence are shares in
            [0, 1], the others means of grades from 0 to 5; overall lies in [-2.5, 10].
        seen, unseen: the same over the classes that training saw, or that were held out.
        statuses: the number of cases by status.
        models: the ids of the models that replied.
        tokens: read and written for these cases, whenever they were asked. `of` knows the last replies only;
            `judge_answers` counts all.
        samples: per case: id, seen, status, scores, overall, notes, response.
        settings: of answers and judge.
        judge: the judge's name.
        folder: the folder of answers, verdicts and this report; None if it was not written.
    """

    figures: Figures
    seen: Figures
    unseen: Figures
    statuses: dict[str, int]
    models: list[str]
    tokens: tuple[int, int]
    samples: list[dict[str, Any]] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    judge: str = ""
    folder: Path | None = None

    @classmethod
    def of(
        cls, cases: Sequence[Case], replies: Sequence[Reply], settings: Mapping[str, Any] | None = None
    ) -> "JudgeReport":
        """The figures of cases and the replies to them, in the same order."""
        rows = [_row(case, reply) for case, reply in zip(cases, replies, strict=True)]
        distinct = {id(reply): reply for reply in replies}.values()  # equal cases share one reply
        return cls(
            figures=_figures(rows),
            seen=_figures([row for row in rows if row["seen"]]),
            unseen=_figures([row for row in rows if not row["seen"]]),
            statuses={name: sum(reply.status == name for reply in replies) for name in STATUSES},
            models=sorted({reply.model for reply in replies if reply.model}),
            tokens=(sum(reply.tokens[0] for reply in distinct), sum(reply.tokens[1] for reply in distinct)),
            samples=rows,
            settings=dict(settings or {}),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict, with the per-case list last."""
        names = ("figures", "seen", "unseen", "statuses", "models", "tokens", "settings", "samples")
        return {name: getattr(self, name) for name in names}


def _row(case: Case, reply: Reply) -> dict[str, Any]:
    return {
        "id": case.id,
        "image_hash": case.picture,
        "seen": case.seen,
        "status": reply.status,
        **{name: reply.scores.get(name) for name in DIMENSIONS},
        "overall": overall(reply.scores),
        "notes": reply.notes,
        "detail": reply.detail,
        "truth": case.truth,
        "response": case.response,
    }


def _figures(rows: Sequence[Mapping[str, Any]]) -> Figures:
    figures: Figures = {}
    for name, bounds in BOUNDS.items():
        judged = [row for row in rows if row["status"] == "ok" and row[name] is not None]
        values = [float(row[name]) for row in judged]
        ends = list(interval([Group(values, images_of(judged))], bounds))
        figures[name] = {"mean": mean(values), "interval": ends, "count": len(values)} if values else None
    return figures
