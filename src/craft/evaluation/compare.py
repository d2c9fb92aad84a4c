"""Compare two runs on the same questions: is the difference more than chance?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from craft.core.errors import DataError
from craft.evaluation.metrics import Group, images_of, interval

Metric = Literal["strict", "lenient", "scored"]

FLIPS = 10_000
"""Random sign changes for a p-value, if questions are not independent."""

SMALLEST = float(np.finfo(np.float64).tiny)
"""The smallest p-value that is returned: below it, there is no float but 0."""

ALIKE = {"backbone", "encoder", "tower", "seed", "held_out", "asked_alone", "answer_temperature"}
"""Settings of a report that may differ: they say what is compared, or every question is checked for them."""


@dataclass(frozen=True)
class Comparison:
    """A against B, question by question; all shares are in [0, 1].

    Attributes:
        questions, images, seeds: how many both runs have.
        a, b: the share of correct answers of each run; of several seeds, the mean over them.
        difference: b - a.
        interval: the 95 % interval of the difference; see `craft.evaluation.metrics.interval`.
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
    seeds: int = 1

    def to_json(self) -> dict[str, Any]:
        """As a dict for JSON."""
        return {**asdict(self), "interval": list(self.interval)}


def compare(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], metric: Metric = "strict"
) -> dict[str, Comparison | None]:
    """Compare two runs on all questions, and on those of seen and unseen classes.

    If every image has one question, the p-value is that of McNemar's exact test. If an image has several (or
    several seeds ask about it), its answers are not independent, and CRAFT flips the signs of whole images'
    differences at random. This p-value is about new images, for these seeds. The interval is over images in
    both cases, and over seeds if there are several.

    A class that only one of the runs held out is neither seen nor unseen here.

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
    groups: dict[str, list[Question]] = {"all": list(first), "seen": [], "unseen": []}
    for key, row in first.items():
        if (seen := row.get("seen", True)) == second[key].get("seen", True):
            groups["seen" if seen else "unseen"].append(key)
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
    right_a, right_b = (np.array([bool(row[metric]) for row in rows], dtype=np.float64) for rows in (a, b))
    difference, images = right_b - right_a, np.array(images_of(a))
    _, seed, counts = np.unique([str(row.get("seed")) for row in a], return_inverse=True, return_counts=True)
    weights = len(a) / len(counts) / counts[seed]  # every seed has the same weight
    _, cluster = np.unique(images, return_inverse=True)
    groups = [Group(difference[seed == n], images[seed == n].tolist(), n) for n in range(len(counts))]
    only_a, only_b = int((difference < 0).sum()), int((difference > 0).sum())
    single = cluster.max() + 1 == len(a)
    test = f"signs of images flipped, {FLIPS} times" + (", for these seeds" if len(counts) > 1 else "")
    return Comparison(
        questions=len(a),
        images=int(cluster.max()) + 1,
        a=float((weights * right_a).mean()),
        b=float((weights * right_b).mean()),
        difference=float((weights * difference).mean()),
        interval=interval(groups, (-1.0, 1.0)),
        only_a=only_a,
        only_b=only_b,
        p_value=mcnemar(only_a, only_b) if single else sign_flips(np.bincount(cluster, weights * difference)),
        test="McNemar, exact" if single else test,
        seeds=len(counts),
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test: the binomial test of the pairs that disagree.

    It is exact for every number of pairs, by the incomplete beta function; at least `SMALLEST`.

    Args:
        only_a, only_b: pairs of which only one side is correct.

    Source: McNemar 1947.
    """
    from scipy.special import bdtr

    tail = float(bdtr(min(only_a, only_b), only_a + only_b, 0.5))
    return min(1.0, max(SMALLEST, 2 * tail))


def sign_flips(sums: np.ndarray) -> float:
    """Two-sided p-value of a sum of independent differences: how often random signs reach its size.

    The observed signs count as one more draw. Differences of one size are drawn together, as the number of
    them that is positive, so a hundred thousand images take no longer than ten.

    Args:
        sums: one difference per independent unit.

    Source: Fisher's randomisation test.
    """
    sizes, counts = np.unique(np.round(np.abs(sums[sums != 0]), 9), return_counts=True)
    signs = 2 * np.random.default_rng(0).binomial(counts, 0.5, size=(FLIPS, len(counts))) - counts
    reached = int((np.abs(signs @ sizes) >= abs(float(sums.sum())) - 1e-6).sum())
    return (reached + 1) / (FLIPS + 1)


def other_settings(
    a: Mapping[str, Any], b: Mapping[str, Any], metric: Metric = "strict"
) -> dict[str, tuple[Any, Any]]:
    """The settings of two reports that differ, apart from those that say what is compared (`ALIKE`).

    Args:
        a, b: `Report.settings`.
        metric: the mark to compare.

    Returns:
        Name -> the values of A and B; None if a report does not have it.

    Raises:
        DataError: one was asked to write its answers and the other to choose an option: these marks measure
            different things.
    """
    names = sorted((a.keys() | b.keys()) - ALIKE)
    other = {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}
    protocols = {"options" if report.get("protocol") == "options" else "generate" for report in (a, b)}
    if len(protocols) > 1 and metric != "scored":
        raise DataError(
            f"A was evaluated with --protocol {a.get('protocol')} and B with --protocol {b.get('protocol')}; "
            "their marks measure different things. Evaluate both with the same --protocol; after --protocol "
            "both, --metric scored can be compared."
        )
    return other
