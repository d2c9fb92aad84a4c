"""Which domain an image belongs to, by its codes and the code counts that encoders carry. Ours."""

from collections.abc import Mapping

from torch import Tensor

MARGIN = 0.1
"""Nats per token by which a domain must beat the general prior."""

ALPHA = 1.0
"""Added to every count, so that a code that never occurred has a probability."""


def log_prior(counts: Tensor) -> Tensor:
    """ln p(k), float64 `[..., K]`, from counts int64 `[..., K]`."""
    smoothed = counts.double() + ALPHA
    return (smoothed / smoothed.sum(dim=-1, keepdim=True)).log()


def route(
    codes: Tensor, domains: Mapping[str, Tensor], general: Tensor, margin: float = MARGIN
) -> str | None:
    """The encoder whose domain explains an image's codes best, or None for the base tower.

    Domains are compared by the codes of all levels, taken as independent. The best one is compared with the
    general prior by level 1, the only level that it counts.

    Args:
        codes: int64 `[N, L]` of the image under the base tower.
        domains: encoder -> code counts int64 `[L, K]` of its training images under the base tower.
        general: level-1 counts int64 `[K]` of images of all kinds.
        margin: nats per token; at least 0.
    """
    if not domains:
        return None
    logs = {name: log_prior(counts) for name, counts in domains.items()}
    scores = {
        name: sum(float(log[level][codes[:, level]].mean()) for level in range(codes.shape[1]))
        for name, log in logs.items()
    }
    best = max(scores, key=scores.__getitem__)
    lead = float((logs[best][0] - log_prior(general))[codes[:, 0]].mean())
    return best if lead > margin else None
