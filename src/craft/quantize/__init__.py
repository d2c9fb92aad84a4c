"""Residual quantisation with a frozen codebook (§3.1, §9)."""

from craft.quantize.codebook import (
    Quantized,
    ResidualCodebook,
    code_counts,
    derived_fingerprint,
    straight_through,
    usage,
)
from craft.quantize.continuous import Continuous, tower_fingerprint

__all__ = [
    "Continuous",
    "Quantized",
    "ResidualCodebook",
    "code_counts",
    "derived_fingerprint",
    "straight_through",
    "tower_fingerprint",
    "usage",
]
