"""Means with their uncertainty."""

from collections.abc import Sequence

import numpy as np

_BLOCK = 4_000_000  # resampled values in memory at once


def bootstrap_interval(
    values: Sequence[float] | Sequence[bool] | np.ndarray,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; (nan, nan) for no values. Source: Efron 1979.

    Args:
        values: one per sample.
        resamples: the number of resampled means.
        level: the coverage.
        seed: for the resampling.
    """
    return grouped_interval([values], resamples, level, seed)


def grouped_interval(
    groups: Sequence[Sequence[float] | Sequence[bool] | np.ndarray],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over the means of groups, such as seeds.

    Each group is resampled on its own, so the interval does not cover the spread between groups. It is
    (nan, nan) if a group is empty.

    Args:
        groups: the values of each group, one per sample.
        resamples, level, seed: as for `bootstrap_interval`.
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not arrays or any(array.size == 0 for array in arrays):
        return float("nan"), float("nan")
    draw = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for array in arrays:
        rows = max(1, min(resamples, _BLOCK // array.size))
        for start in range(0, resamples, rows):
            size = min(rows, resamples - start)
            picked = draw.integers(array.size, size=(size, array.size))
            total[start : start + size] += array[picked].mean(axis=1)
    tail = 50 * (1 - level)
    low, high = np.percentile(total / len(arrays), [tail, 100 - tail])
    return float(low), float(high)


def paired_interval(
    differences: np.ndarray,
    clusters: np.ndarray,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean difference, over whole clusters. Source: Efron 1979.

    Args:
        differences: `[n]`, one per question.
        clusters: int `[n]` in 0..C-1; questions about the same image have the same number.
        resamples, level, seed: as for `bootstrap_interval`.
    """
    sums = np.bincount(clusters, weights=differences)
    counts = np.bincount(clusters)
    draw, means = np.random.default_rng(seed), np.empty(resamples)
    for number in range(resamples):
        picked = draw.integers(len(sums), size=len(sums))
        means[number] = sums[picked].sum() / counts[picked].sum()
    tail = 50 * (1 - level)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def mean(values: Sequence[float] | Sequence[bool] | np.ndarray) -> float | None:
    """The mean; None for no values."""
    return float(np.mean(np.asarray(values, dtype=np.float64))) if len(values) else None


def spread(values: Sequence[float | None]) -> dict[str, float | int] | None:
    """Mean and sample standard deviation over seeds (0 for one seed); None if a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    return {"mean": float(np.mean(known)), "std": deviation, "runs": len(known)}
