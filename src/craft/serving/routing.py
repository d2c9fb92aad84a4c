"""Which domain an image belongs to, by its codes and the code priors that encoders carry. Ours."""

from collections.abc import Mapping

from torch import Tensor

MARGIN = 0.05
"""Nats per token by which a domain must beat the general prior, and every other domain."""

ALPHA = 1.0
"""Added to every count, so that a code that never occurred has a probability."""


def log_prior(counts: Tensor) -> Tensor:
    """ln p(k), float64 `[K]`, from level-1 counts int64 `[K]`."""
    smoothed = counts.double() + ALPHA
    return (smoothed / smoothed.sum()).log()


def route(codes: Tensor, priors: Mapping[str, Tensor], general: Tensor, margin: float = MARGIN) -> str | None:
    """The encoder whose domain explains an image's codes best, or None for the base tower.

    Args:
        codes: level-1 codes int64 `[N]` of the image under the base tower.
        priors: encoder -> level-1 counts int64 `[K]` of its domain under the base tower.
        general: level-1 counts int64 `[K]` of images of all kinds.
        margin: nats per token; at least 0.

    Returns:
        The name whose mean log-likelihood is highest, if it is above the general prior's by `margin`.
    """
    if not priors:
        return None
    scores = {name: float(log_prior(counts)[codes].mean()) for name, counts in priors.items()}
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] - float(log_prior(general)[codes].mean()) > margin else None
