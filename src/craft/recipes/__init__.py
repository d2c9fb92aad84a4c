"""Floor 5: the verbs as functions; each file reads from top to bottom. A newcomer opens `adapt` first."""

from craft.recipes.adapt import AdaptResult, adapt, rehearse
from craft.recipes.baseline import BaselineResult, load_tuned, tune
from craft.recipes.evaluate import evaluate
from craft.recipes.prior import build_prior
from craft.recipes.transfer import TransferMatrix, transfer

__all__ = [
    "AdaptResult",
    "BaselineResult",
    "TransferMatrix",
    "adapt",
    "build_prior",
    "evaluate",
    "load_tuned",
    "rehearse",
    "transfer",
    "tune",
]
