"""Surrogate alignment loss (SAL, Eq. 2), with logits only at the answer positions."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100
BLOCK = 1024
"""Number of positions whose logits are in memory at once (0.6 GiB in float32 at V = 151936)."""


def answer_positions(labels: Tensor) -> Tensor:
    """The positions before an answer token: bool `[B, T - 1]`, for labels int64 `[B, T]`.

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

    It equals the loss over the full sequence in value and gradient, but computes logits `[n, V]` only for the
    n positions that predict an answer token. At V = 151936 logits take most of the memory of a step.

    Args:
        hidden: last hidden states of the LLM (after its final norm, before the head), `[B, T, h]`.
        lm_head: hidden states `[n, h]` -> logits `[n, V]`.
        labels: int64 `[B, T]`, aligned with the tokens (this function shifts them); -100 for image, prompt
            and padding, which have no loss.
        reduction: "mean" over all answer tokens of the batch, like `labels=` in transformers; or "sum" over
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
    states = hidden[:, :-1][mask]  # these predict y_i from y_<i, t and z̃, [n, h]

    def loss(part: Tensor, goal: Tensor) -> Tensor:  # Eq. 2: -Σ_i log p(y_i | y_<i, t, z̃)
        return F.cross_entropy(lm_head(part).float(), goal, reduction="sum")

    if len(targets) <= BLOCK:
        total = loss(states, targets)
    else:  # long answers: the logits of one block at a time, recomputed in the backward pass
        blocks = zip(states.split(BLOCK), targets.split(BLOCK), strict=True)
        total = torch.stack([checkpoint(loss, *block, use_reentrant=False) for block in blocks]).sum()  # type: ignore[arg-type]
    return total / (targets.numel() if reduction == "mean" else labels.shape[0])
