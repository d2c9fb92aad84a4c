"""Floor 1: losses as functions on tensors: the paper's (Eq. 2, 3, 4; Eq. 5 weighs them), and one of ours."""

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
