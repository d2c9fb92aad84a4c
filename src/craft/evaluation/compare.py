"""Compare two runs on the same questions: is the difference more than chance?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any, Literal

import numpy as np

from craft.core.errors import DataError
from craft.evaluation.metrics import paired_interval

Metric = Literal["strict", "lenient", "scored"]

FLIPS = 10_000
"""Random sign changes for a p-value, if questions are not independent."""


@dataclass(frozen=True)
class Comparison:
    """A against B, question by question; all shares are in [0, 1].

    Attributes:
        questions, images: how many both runs have.
        a, b: the share of correct answers of each run.
        difference: b - a.
        interval: the 95 % interval of the difference, by a paired bootstrap over images.
        only_a, only_b: questions that only this run answers correctly.
        p_value: probability of a difference at least this large if both runs are equally good.
        test: how `p_value` was computed.
    """

    questions: int
    images: int
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    only_a: int
    only_b: int
    p_value: float
    test: str

    def to_json(self) -> dict[str, Any]:
        """As a dict for JSON."""
        return {**asdict(self), "interval": list(self.interval)}


def compare(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], metric: Metric = "strict"
) -> dict[str, Comparison | None]:
    """Compare two runs on all questions, and on those of seen and unseen classes.

    If every image has one question, the p-value is that of McNemar's exact test. If an image has several (or
    several seeds ask about it), its answers are not independent, and CRAFT flips the signs of whole images'
    differences at random. The interval resamples images in both cases.

    Args:
        a, b: rows of `Report.samples`, with a `seed` if a list holds several seeds. Rows are paired by seed
            and id.
        metric: the mark to compare: strict, lenient, or whether the likeliest option is correct.

    Returns:
        A comparison for "all", "seen" and "unseen"; None for a group without questions.

    Raises:
        DataError: the runs were not asked the same questions, or were not marked by this metric.

    Source: McNemar 1947; ours.
    """
    first, second = _by_question(a, metric, "A"), _by_question(b, metric, "B")
    if first.keys() != second.keys():
        alone = sorted(first.keys() ^ second.keys(), key=str)[0]
        raise DataError(
            f"A has {len(first)} questions, B has {len(second)}, and both have "
            f"{len(first.keys() & second.keys())} (question {alone[1]} is in one only). Evaluate both on the "
            "same data, split, seeds and limit."
        )
    for key, row in first.items():
        other = second[key]
        if any(row.get(name) != other.get(name) for name in ("prompt", "answer", "image_hash")):
            raise DataError(
                f"Question {key[1]} is not the same in A and B: {row['prompt']!r} and {other['prompt']!r}. "
                "Evaluate both with the same seed, distractors and answer format; `craft eval --like "
                "ENCODER` asks the base tower an encoder's questions."
            )
    groups = {"all": list(first), "seen": [], "unseen": []}
    for key, row in first.items():
        groups["seen" if row.get("seen", True) else "unseen"].append(key)
    return {
        name: _compare([first[key] for key in keys], [second[key] for key in keys], metric) if keys else None
        for name, keys in groups.items()
    }


Question = tuple[str | int | None, str]  # seed and id


def _by_question(
    rows: Sequence[Mapping[str, Any]], metric: Metric, run: str
) -> dict[Question, Mapping[str, Any]]:
    by_question = {(row.get("seed"), str(row["id"])): row for row in rows}
    if not rows or len(by_question) < len(rows):
        raise DataError(
            f"{run} has {'the same question twice' if rows else 'no questions'}; evaluate it again."
        )
    if any(row.get(metric) is None for row in rows):
        raise DataError(
            f"{run} has answers without the mark '{metric}'; "
            "for 'scored' evaluate with --protocol both or options."
        )
    return by_question


def _compare(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], metric: Metric) -> Comparison:
    right_a = np.array([bool(row[metric]) for row in a])
    right_b = np.array([bool(row[metric]) for row in b])
    images = [str(row.get("image_hash") or row["id"]) for row in a]
    difference = right_b.astype(int) - right_a.astype(int)
    _, cluster = np.unique(images, return_inverse=True)
    sums = np.bincount(cluster, weights=difference)
    only_a, only_b = int((difference < 0).sum()), int((difference > 0).sum())
    single = len(sums) == len(a)
    return Comparison(
        questions=len(a),
        images=len(sums),
        a=float(right_a.mean()),
        b=float(right_b.mean()),
        difference=float(difference.mean()),
        interval=paired_interval(difference, cluster),
        only_a=only_a,
        only_b=only_b,
        p_value=mcnemar(only_a, only_b) if single else sign_flips(sums),
        test="McNemar, exact" if single else f"signs of images flipped, {FLIPS} times",
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test: the binomial test of the pairs that disagree.

    Args:
        only_a, only_b: pairs of which only one side is correct.

    Source: McNemar 1947.
    """
    count, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(comb(count, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**count)


def sign_flips(sums: np.ndarray) -> float:
    """Two-sided p-value of a sum of independent differences: how often random signs reach its size.

    The observed signs count as one more draw.

    Args:
        sums: one difference per independent unit.

    Source: Fisher's randomisation test.
    """
    sums = sums[sums != 0]
    draw, observed, reached = np.random.default_rng(0), abs(float(sums.sum())), 0
    for start in range(0, FLIPS, 1000):
        signs = draw.integers(0, 2, size=(min(1000, FLIPS - start), len(sums))) * 2 - 1
        reached += int((np.abs(signs @ sums) >= observed - 1e-9).sum())
    return (reached + 1) / (FLIPS + 1)
