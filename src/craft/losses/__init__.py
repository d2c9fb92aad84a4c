"""Floor 1: the three losses of the paper (Eq. 2, 3, 4) as functions on tensors; Eq. 5 weighs them."""

from craft.losses.alignment import answer_positions, surrogate_alignment
from craft.losses.commitment import commitment, commitment_cumulative
from craft.losses.contrastive import contrastive

__all__ = [
    "answer_positions",
    "commitment",
    "commitment_cumulative",
    "contrastive",
    "surrogate_alignment",
]
