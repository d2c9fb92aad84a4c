"""Retention loss: what is no picture of a class keeps the features that it had."""

from torch import Tensor


def retention(features: Tensor, initial: Tensor) -> Tensor:
    """Squared distance of features to those of the base tower, averaged over all elements; float32 scalar.

    Args:
        features: `[B, N, d]` of the tower that trains; gradient goes here.
        initial: `[B, N, d]` of the base tower, for the same pictures. No gradient flows in.

    Source: ours. The distance is that of LDIFS (arXiv 2308.13320) at the last layer alone; which pictures it
    is taken on is what matters (`craft.lessons.retention`).
    """
    return (features.float() - initial.detach().float()).square().mean()
