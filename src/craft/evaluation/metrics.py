"""Means with their uncertainty: one function for the intervals of all tables."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

COVERAGE = 0.95

ONE_SEED = "one seed: questions only"
"""What an interval of a single seed covers. Every table with such an interval says so."""

SEVERAL_SEEDS = "over images and seeds"
"""What an interval of several seeds covers."""

_DIGITS = 12  # rounding errors of sums in another order must not show
_NORMAL = NormalDist().inv_cdf((1 + COVERAGE) / 2)

Values = Sequence[float] | Sequence[bool] | np.ndarray


class Group(NamedTuple):
    """The values of one cell of a table for one seed.

    Attributes:
        values: `[n]`, one per question: marks, differences of two marks, or grades.
        images: `[n]`, for each question what identifies its image by content.
        seed: of the run.
        weight: of the group's mean in the mean over groups.
    """

    values: Values
    images: Sequence[Hashable]
    seed: Hashable = 0
    weight: float = 1.0


def interval(groups: Sequence[Group], bounds: tuple[float, float] = (0.0, 1.0)) -> tuple[float, float]:
    """The 95 % interval of the weighted mean of groups' means. Every interval of CRAFT is this one.

    The independent units are images: an image counts once, with all of its questions in all groups. Nothing
    is drawn at random, so the order of rows does not matter. The variance is the linearised one over images
    (Liang and Zeger 1986), so asking every question twice does not narrow the interval.

    - Marks (0 or 1) get Wilson's interval (1927). If an image has several questions, it is computed with the
      effective number of questions and Student's t over images (Korn and Graubard 1998). If all marks are
      equal, each image counts as one question.
    - Differences and grades get a t-interval over images. One image at each bound is added first, so that
      equal values do not give an interval of width 0 (Bonett and Price 2012, for differences of marks).
    - If groups have several seeds, the t-interval over the means of seeds is combined with this interval: the
      squares of their arms are added (Zou and Donner 2008). This is conservative, since the means of seeds
      contain the noise of questions too. Of one seed the interval covers questions only: see `ONE_SEED`.

    Args:
        groups: one per seed, or one per data set and seed.
        bounds: the smallest and the largest possible value.

    Returns:
        The ends, which lie within the bounds; (nan, nan) if there are no groups, or one is empty. The bounds
        themselves if differences or grades are all about one image.
    """
    if not groups or any(len(group.values) == 0 for group in groups):
        return math.nan, math.nan
    parts = _parts(groups)
    marks = bounds == (0.0, 1.0) and all(np.isin(group.values, (0, 1)).all() for group in groups)
    low, high = _wilson(parts) if marks else _student(parts, bounds)
    arm = _arm_over_seeds(means_of_seeds(groups))
    low, high = (
        parts.mean - math.hypot(parts.mean - low, arm),
        parts.mean + math.hypot(high - parts.mean, arm),
    )
    return round(max(low, bounds[0]), _DIGITS), round(min(high, bounds[1]), _DIGITS)


def interval_over_seeds(means: Sequence[float], errors: Sequence[float] = ()) -> tuple[float, float] | None:
    """The 95 % t-interval over the means of seeds, combined with the noise of questions; None for one seed.

    Args:
        means: one per seed.
        errors: the standard error over questions of each mean. Its arm is added in squares, as in `interval`;
            the questions of two seeds count as different ones. Nothing: the interval covers seeds only.

    Source: Student 1908; Zou and Donner 2008.
    """
    if len(means) < 2:
        return None
    questions = _NORMAL * math.sqrt(math.fsum(error**2 for error in errors)) / len(means)
    arm, mean = math.hypot(_arm_over_seeds(means), questions), float(np.mean(means))
    return round(mean - arm, _DIGITS), round(mean + arm, _DIGITS)


def standard_error(group: Group) -> float:
    """The standard error of a group's mean over images; NaN for fewer than two. Source: Liang, Zeger 1986."""
    return math.sqrt(_parts([group]).variance) if len(group.values) else math.nan


@dataclass(frozen=True)
class _Parts:
    """What an interval is made of.

    Attributes:
        mean: the weighted mean of groups' means.
        variance: of the mean, over images; NaN if a group has one image only.
        factor: k / (k - 1) for the k images of the smallest group; it is part of the variance.
        images: number of distinct images.
        effective: number of equally weighted images with the same sum of squared weights (Kish 1965).
        alone: whether no group has two questions about one image.
    """

    mean: float
    variance: float
    factor: float
    images: int
    effective: float
    alone: bool


def _parts(groups: Sequence[Group]) -> _Parts:
    total = sum(group.weight for group in groups)
    numbers: dict[Hashable, int] = {}
    mean, residuals, shares, of_image = 0.0, [], [], []
    for group in groups:
        values = np.asarray(group.values, dtype=np.float64)
        share = group.weight / total / len(values)
        mean += share * math.fsum(values)
        residuals.append(share * (values - math.fsum(values) / len(values)))
        shares.append(np.full(len(values), share))
        of_image += [numbers.setdefault(image, len(numbers)) for image in group.images]
    distinct = [len(set(group.images)) for group in groups]
    sums, weights = (np.bincount(of_image, np.concatenate(part)) for part in (residuals, shares))
    factor = min(distinct) / (min(distinct) - 1) if min(distinct) > 1 else math.nan
    return _Parts(
        mean=mean,
        variance=factor * math.fsum(sums**2),
        factor=factor,
        images=len(numbers),
        effective=1 / math.fsum(weights**2),
        alone=all(count == len(group.images) for count, group in zip(distinct, groups, strict=True)),
    )


def _wilson(parts: _Parts) -> tuple[float, float]:
    """Wilson's interval for the effective number of questions."""
    p, count = parts.mean, parts.effective
    quantile = _NORMAL if parts.alone else _student_quantile(max(1, parts.images - 1))
    if parts.variance > 1e-15:
        count = parts.factor * p * (1 - p) / parts.variance
    square = quantile**2
    centre = (count * p + square / 2) / (count + square)
    arm = quantile * math.sqrt(count * p * (1 - p) + square / 4) / (count + square)
    return min(p, centre - arm), max(p, centre + arm)


def _student(parts: _Parts, bounds: tuple[float, float]) -> tuple[float, float]:
    """The t-interval over images, after one image at each bound was added."""
    if math.isnan(parts.variance):
        return bounds
    count, mean = parts.effective, parts.mean
    centre = (count * mean + sum(bounds)) / (count + 2)
    squares = count * (count * parts.variance / parts.factor + (mean - centre) ** 2)
    squares += sum((bound - centre) ** 2 for bound in bounds)
    arm = _student_quantile(parts.images - 1) * math.sqrt(squares / (count + 2) / (count + 1))
    return min(mean, centre - arm), max(mean, centre + arm)


def means_of_seeds(groups: Sequence[Group]) -> list[float]:
    """The weighted mean of each seed's groups."""
    by_seed: dict[Hashable, list[Group]] = {}
    for group in groups:
        by_seed.setdefault(group.seed, []).append(group)
    return [_parts(members).mean for members in by_seed.values()]


def _arm_over_seeds(means: Sequence[float]) -> float:
    """Half the width of the t-interval over the means of seeds; 0 for one seed."""
    if len(means) < 2:
        return 0.0
    return _student_quantile(len(means) - 1) * float(np.std(means, ddof=1)) / math.sqrt(len(means))


def _student_quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + COVERAGE) / 2))


def images_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What identifies the image of each row of `Report.samples` by content. A row that does not name its
    image counts as one of its own."""
    return [str(row.get("image_hash") or f"row {row.get('id', number)}") for number, row in enumerate(rows)]


def mean(values: Values) -> float | None:
    """The mean; None for no values."""
    return float(np.mean(np.asarray(values, dtype=np.float64))) if len(values) else None


def harmonic_mean(seen: float | None, unseen: float | None) -> float | None:
    """H = 2 s u / (s + u) of the accuracies of seen and unseen classes, the figure of generalised zero-shot
    learning (Xian et al. 2017); None without one of them, 0 if both are 0."""
    if seen is None or unseen is None:
        return None
    return 2 * seen * unseen / (seen + unseen) if seen + unseen > 0 else 0.0


def spread(values: Sequence[float | None]) -> dict[str, float | int] | None:
    """Mean and sample standard deviation over seeds (0 for one seed); None if a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    return {"mean": float(np.mean(known)), "std": deviation, "runs": len(known)}
