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
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return float("nan"), float("nan")
    draw = np.random.default_rng(seed)
    rows = max(1, min(resamples, _BLOCK // array.size))
    means: list[np.ndarray] = []
    for start in range(0, resamples, rows):
        picked = draw.integers(array.size, size=(min(rows, resamples - start), array.size))
        means.append(array[picked].mean(axis=1))
    tail = 50 * (1 - level)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
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
