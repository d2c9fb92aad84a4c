"""Floor 1: losses as functions on tensors: those of the paper (Eq. 2, 3, 4) and one of ours (retention)."""

from craft.losses.commitment import commitment, commitment_cumulative
from craft.losses.contrastive import contrastive
from craft.losses.retention import retention
from craft.losses.sal import answer_positions, surrogate_alignment

__all__ = [
    "answer_positions",
    "commitment",
    "commitment_cumulative",
    "contrastive",
    "retention",
    "surrogate_alignment",
]
