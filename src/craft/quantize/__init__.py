"""Residual quantisation with a frozen codebook (§3.1, §9)."""

from craft.quantize.codebook import Quantized, ResidualCodebook
from craft.quantize.continuous import Continuous, tower_fingerprint
from craft.quantize.straight_through import straight_through
from craft.quantize.usage import code_counts, usage

__all__ = [
    "Continuous",
    "Quantized",
    "ResidualCodebook",
    "code_counts",
    "straight_through",
    "tower_fingerprint",
    "usage",
]
