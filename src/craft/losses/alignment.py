"""Surrogate alignment loss (SAL, Eq. 2), with logits at the answer positions only."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def answer_positions(labels: Tensor) -> Tensor:
    """Where the next token is an answer token: bool `[B, T - 1]`, for labels int64 `[B, T]`.

    Position t predicts token t + 1, so the first column of the labels never counts.
    """
    return labels[:, 1:] != IGNORED


def surrogate_alignment(
    hidden: Tensor,
    lm_head: Callable[[Tensor], Tensor],
    labels: Tensor,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Cross-entropy of the answer tokens under the surrogate LLM, a float32 scalar.

    Equal to the loss over the full sequence, in value and gradient, but the logits `[n, V]` are made only for
    the n positions that predict an answer token: at V = 151936 that is most of the memory of a step.

    Args:
        hidden: last hidden states of the LLM (after its final norm, before the head), `[B, T, h]`.
        lm_head: hidden states `[n, h]` -> logits `[n, V]`.
        labels: int64 `[B, T]`, aligned with the tokens (shifted in here); -100 where no loss is taken, that
            is for image, prompt and padding.
        reduction: "mean" over all answer tokens of the batch (as `labels=` of transformers), or "sum" over
            the tokens of an answer, as Eq. 2 is printed, averaged over the B samples.

    Raises:
        ValueError: shapes do not fit, or no position predicts an answer token.

    Source: paper Eq. 2.
    """
    if hidden.ndim != 3 or hidden.shape[:2] != labels.shape:
        raise ValueError(
            f"hidden states {list(hidden.shape)} and labels {list(labels.shape)} are not [B, T, h] and [B, T]"
        )
    mask = answer_positions(labels)
    targets = labels[:, 1:][mask]  # y_i, [n]
    if targets.numel() == 0:
        raise ValueError("no answer token in the batch: every label is -100 after the shift by one")
    logits = lm_head(hidden[:, :-1][mask]).float()  # of y_i given y_<i, t and z̃, [n, V]
    total = F.cross_entropy(logits, targets, reduction="sum")  # Eq. 2: -Σ_i log p(y_i | y_<i, t, z̃)
    return total / (targets.numel() if reduction == "mean" else labels.shape[0])
