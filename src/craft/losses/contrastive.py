"""Class-masked sigmoid contrastive loss between images and texts (Eq. 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive(
    image: Tensor,
    text: Tensor,
    classes: Tensor,
    log_temperature: Tensor,
    bias: Tensor | None = None,
    others: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Mean over images of Eq. 4; float32 scalar, computed in float32 under autocast too.

    Every image attracts its text and repels the texts of *other* classes; the texts of other images of its
    class do not count. If samples have no class (VQA), number the distinct texts.

    Args:
        image: v `[B, d]`, the [CLS] features; they need no normalisation.
        text: t `[B, d]`, embeddings from the frozen text encoder.
        classes: y, int64 `[B]`.
        log_temperature: log τ, a scalar; the exponential keeps τ positive.
        bias: added to every s_ij, as in SigLIP; the paper has none.
        others: texts `[M, d]` and classes `[M]` of a whole batch, of which this one is a part. Images then
            repel all texts of the whole batch. The mean of the losses of all its parts, weighted by B, is the
            loss of the whole batch, in value and gradient.

    Raises:
        ValueError: shapes do not fit.

    Source: paper Eq. 4.
    """
    if image.ndim != 2 or image.shape != text.shape or classes.shape != image.shape[:1]:
        raise ValueError(
            f"image {list(image.shape)}, text {list(text.shape)} and classes {list(classes.shape)} "
            "are not [B, d], [B, d] and [B]"
        )
    with torch.autocast(image.device.type, enabled=False):
        v, t = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        pool, pool_classes = (
            (t, classes) if others is None else (F.normalize(others[0].float(), dim=-1), others[1])
        )
        tau, shift = log_temperature.float().exp(), 0.0 if bias is None else bias.float()
        score = tau * (v @ pool.T) + shift  # s_ij = τ cos(v_i, t_j)
        matching = score.diagonal() if others is None else tau * (v * t).sum(-1) + shift  # s_ii
        other_class = classes[:, None] != pool_classes[None, :]  # j : y_j ≠ y_i
        positive = F.softplus(-matching)  # -log σ(s_ii)
        negative = (F.softplus(score) * other_class).sum(1)  # -Σ_j log(1 - σ(s_ij))
        return (positive + negative).mean()  # Eq. 4
