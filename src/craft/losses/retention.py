"""Retention loss: images outside the adaptation classes keep their initial features."""

from torch import Tensor


def retention(features: Tensor, initial: Tensor) -> Tensor:
    """Squared distance of features to those of the base tower, averaged over all elements; float32 scalar.

    Args:
        features: `[B, N, d]` of the trained tower, with gradient.
        initial: `[B, N, d]` of the base tower for the same images; no gradient flows into it.

    Source: ours. The distance is that of LDIFS (arXiv 2308.13320) for the last layer only. The choice of
    images is what matters (`craft.lessons.retention`).
    """
    return (features.float() - initial.detach().float()).square().mean()
