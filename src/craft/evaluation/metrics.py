"""Means with their uncertainty."""

from collections.abc import Sequence

import numpy as np

RESAMPLES, COVERAGE = 1000, 0.95
_BLOCK = 4_000_000  # resampled values in memory at once

Values = Sequence[float] | Sequence[bool] | np.ndarray


def bootstrap_interval(values: Values) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of the mean; (nan, nan) for no values. Source: Efron 1979."""
    return grouped_interval([values])


def grouped_interval(groups: Sequence[Values]) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of the mean over the means of groups, such as seeds.

    Each group is resampled on its own, so the interval does not cover the spread between groups. It is
    (nan, nan) if a group is empty.
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not arrays or any(array.size == 0 for array in arrays):
        return float("nan"), float("nan")
    draw, total = np.random.default_rng(0), np.zeros(RESAMPLES)
    for array in arrays:
        rows = max(1, min(RESAMPLES, _BLOCK // array.size))
        for start in range(0, RESAMPLES, rows):
            size = min(rows, RESAMPLES - start)
            picked = draw.integers(array.size, size=(size, array.size))
            total[start : start + size] += array[picked].mean(axis=1)
    return _middle(total / len(arrays))


def paired_interval(differences: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of a mean difference, over whole clusters. Source: Efron 1979.

    Args:
        differences: `[n]`, one per question.
        clusters: int `[n]` in 0..C-1; questions about the same image have the same number.
    """
    sums, counts = np.bincount(clusters, weights=differences), np.bincount(clusters)
    draw, means = np.random.default_rng(0), np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        picked = draw.integers(len(sums), size=len(sums))
        means[number] = sums[picked].sum() / counts[picked].sum()
    return _middle(means)


def _middle(means: np.ndarray) -> tuple[float, float]:
    """The percentiles between which `COVERAGE` of the resampled means lie."""
    tail = 50 * (1 - COVERAGE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def mean(values: Values) -> float | None:
    """The mean; None for no values."""
    return float(np.mean(np.asarray(values, dtype=np.float64))) if len(values) else None


def spread(values: Sequence[float | None]) -> dict[str, float | int] | None:
    """Mean and sample standard deviation over seeds (0 for one seed); None if a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    return {"mean": float(np.mean(known)), "std": deviation, "runs": len(known)}
