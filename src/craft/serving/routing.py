"""Which domain an image belongs to, by its codes and what encoders record of their training images. Ours.

The score of an image for a domain is the log-probability of its codes under the base tower, by the domain's
counts, with all levels and tokens taken as independent. The domain with the highest score answers, unless the
score is unusual for the domain's own images: then the base tower answers.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

TYPICAL = 0.1
"""The share of own images whose scores count as unusual for a domain (`scripts/measure_routing.py`)."""

ALPHA = 1.0
"""Added to every count, so that a code that never occurred has a probability."""


class Domain(NamedTuple):
    """What routing knows of a domain.

    Attributes:
        logs: `log_prior` float64 `[L, K]` of its training images' codes under the base tower.
        typical: the score that the share `TYPICAL` of these images does not reach (`typical_score`).
    """

    logs: Tensor
    typical: float


def log_prior(counts: Tensor) -> Tensor:
    """ln p(k), float64 `[..., K]`, from counts int64 `[..., K]`."""
    smoothed = counts.double() + ALPHA
    return (smoothed / smoothed.sum(dim=-1, keepdim=True)).log()


def score(codes: Tensor, logs: Tensor) -> float:
    """The sum over levels of the mean over tokens of ln p(code), in nats per token.

    Args:
        codes: int64 `[N, L]` of an image.
        logs: float64 `[L, K]`, the `log_prior` of a domain.
    """
    return float(logs.gather(1, codes.T).mean(dim=1).sum())


def typical_score(images: Iterable[Tensor], counts: Tensor, share: float = TYPICAL) -> float:
    """The score that a share of a domain's own images does not reach.

    Each image is scored by the counts of the others: with few images, its own codes would make it likelier
    than any new image of the domain.

    Args:
        images: codes int64 `[N, L]` of each.
        counts: int64 `[L, K]`, the codes of all of them.
        share: of the images.
    """
    totals, size, scores = counts.sum(dim=1), counts.shape[1], []
    for codes in images:
        own = torch.stack([torch.bincount(level, minlength=size) for level in codes.T])
        others = (counts - own).gather(1, codes.T).double()  # `[L, N]`: log_prior(counts - own), where needed
        logs = (others + ALPHA).log() - (totals - len(codes) + ALPHA * size).double().log()[:, None]
        scores.append(logs.mean(dim=1).sum())
    return float(torch.stack(scores).quantile(share))


def route(codes: Tensor, domains: Mapping[str, Domain], margin: float = 0.0) -> str | None:
    """The encoder whose domain explains an image's codes best, or None for the base tower.

    Args:
        codes: int64 `[N, L]` of the image under the base tower.
        domains: by encoder.
        margin: nats per token by which the score must exceed the domain's `typical`.
    """
    scores = {name: score(codes, domain.logs) for name, domain in domains.items()}
    if not scores:
        return None
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] - domains[best].typical > margin else None
