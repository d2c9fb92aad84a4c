"""Probabilities of options that mean something: one temperature, and how far confidence is from accuracy.

Source: Guo et al., On Calibration of Modern Neural Networks, 2017 (temperature scaling; expected calibration
error). Bins of equal mass instead of equal width are ours: few answers have a low confidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 15
"""Bins of the expected calibration error."""

RANGE = (0.05, 20.0)
"""The temperatures that are searched."""


@dataclass(frozen=True)
class Calibration:
    """How well the probabilities of options fit the share of right answers.

    Attributes:
        count: the number of questions.
        error: the expected calibration error, in [0, 1].
        nll: the mean negative log-likelihood of the right option, in nats.
        confidence: the mean probability of the likeliest option.
        accuracy: the share of questions whose likeliest option is right.
        bins: per bin the mean confidence, the accuracy, and the number of questions.
    """

    count: int
    error: float
    nll: float
    confidence: float
    accuracy: float
    bins: tuple[tuple[float, float, int], ...]

    def to_json(self) -> dict[str, Any]:
        """As a dict for JSON, rounded to six digits."""
        figures = {name: round(getattr(self, name), 6) for name in ("error", "nll", "confidence", "accuracy")}
        bins = [[round(mean, 6), round(share, 6), count] for mean, share, count in self.bins]
        return {"count": self.count, **figures, "bins": bins}


def probabilities(scores: Sequence[float], temperature: float = 1.0) -> np.ndarray:
    """The probability of each option, float64 `[options]`.

    Args:
        scores: the log-probability of each option's text.
        temperature: divides the scores; 1 leaves them.
    """
    values = np.asarray(scores, dtype=np.float64) / temperature
    values = np.exp(values - values.max())
    return values / values.sum()


def measure(
    scores: Sequence[Sequence[float]], right: Sequence[int], temperature: float = 1.0, bins: int = BINS
) -> Calibration:
    """The calibration of answers at a temperature.

    Args:
        scores: per question the log-probability of each option.
        right: per question the index of the right option.
        temperature: as in `probabilities`.
        bins: of equal mass, for the expected calibration error.

    Raises:
        ValueError: there are no questions, or not one right option per question.
    """
    if not scores or len(scores) != len(right):
        raise ValueError(f"{len(scores)} questions and {len(right)} right options")
    shares = [probabilities(values, temperature) for values in scores]
    confidence = np.array([share.max() for share in shares])
    correct = np.array([share.argmax() == index for share, index in zip(shares, right, strict=True)], float)
    nll = -np.mean([np.log(max(share[index], 1e-300)) for share, index in zip(shares, right, strict=True)])
    order = np.argsort(confidence, kind="stable")
    groups = [group for group in np.array_split(order, min(bins, len(order))) if len(group)]
    filled = [(float(confidence[g].mean()), float(correct[g].mean()), len(g)) for g in groups]
    error = sum(count * abs(mean - share) for mean, share, count in filled) / len(order)
    return Calibration(
        count=len(order),
        error=float(error),
        nll=float(nll),
        confidence=float(confidence.mean()),
        accuracy=float(correct.mean()),
        bins=tuple(filled),
    )


def fit_temperature(scores: Sequence[Sequence[float]], right: Sequence[int]) -> float:
    """The temperature with the smallest negative log-likelihood (Guo et al., section 4.2).

    The negative log-likelihood is convex in the inverse temperature, so a search by golden section finds it.

    Args:
        scores, right: as for `measure`; of questions that the tower did not train on.

    Raises:
        ValueError: as for `measure`.
    """
    low, high = (float(np.log(bound)) for bound in RANGE)
    ratio = (np.sqrt(5.0) - 1) / 2

    def loss(log_temperature: float) -> float:
        return measure(scores, right, float(np.exp(log_temperature))).nll

    left, right_end = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right_end)
    while high - low > 1e-4:
        if at_left <= at_right:
            high, right_end, at_right = right_end, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right_end, at_right
            right_end = low + ratio * (high - low)
            at_right = loss(right_end)
    return float(np.exp((low + high) / 2))
