"""Figures with their uncertainty."""

from collections.abc import Sequence

import numpy as np

_BLOCK = 4_000_000  # resampled values held at once


def bootstrap_interval(
    values: Sequence[float] | Sequence[bool] | np.ndarray,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; (nan, nan) for no values. Source: Efron 1979.

    Args:
        values: one per sample.
        resamples: how many resampled means.
        level: coverage.
        seed: of the resampling.
    """
    return grouped_interval([values], resamples, level, seed)


def grouped_interval(
    groups: Sequence[Sequence[float] | Sequence[bool] | np.ndarray],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of the groups' means (seeds, say), each group resampled
    within itself; (nan, nan) where one is empty. It does not contain the spread between groups.

    Args:
        groups: values, one per sample.
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
    """Percentile bootstrap interval of a mean difference; whole clusters are drawn. Source: Efron 1979.

    Args:
        differences: `[n]`, one per question.
        clusters: int `[n]`, 0..C-1: which questions belong together (to one image).
        resamples, level, seed: as in `bootstrap_interval`.
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
    """The mean, or None of nothing."""
    return float(np.mean(np.asarray(values, dtype=np.float64))) if len(values) else None


def spread(values: Sequence[float | None]) -> dict[str, float | int] | None:
    """Mean and sample standard deviation over seeds (0 for one); None where a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    return {"mean": float(np.mean(known)), "std": deviation, "runs": len(known)}
