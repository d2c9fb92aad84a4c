"""The token table: an LLM's own input embeddings for codes, read by families without a projector."""

import torch
from torch import Tensor, nn

from craft.core.errors import CheckpointError, CraftError
from craft.core.tokens import VisionTokens
from craft.losses.table_gradient import TableGradient, through_table


class TokenTable(nn.Module):
    """Which token of the LLM's vocabulary stands for which code.

    It has no weights: the rows belong to the LLM's input embedding, and so do their hashes.

    Attributes:
        ids: int64 `[L, K]`, the token id of each code at each level; not saved with the weights.
        gradient: the rule that replaces the rows' gradient in training (`craft.losses.table_gradient`), or
            None if nothing trains through the table.

    Args:
        ids: see the attributes.

    Source: Tar (arXiv 2506.18898) and Chameleon (arXiv 2405.09818) for one level; several levels are ours.
    """

    ids: Tensor

    def __init__(self, ids: Tensor) -> None:
        super().__init__()
        if ids.ndim != 2 or ids.is_floating_point():
            raise CheckpointError(
                f"A token table needs integer ids [L, K]; got {tuple(ids.shape)} {ids.dtype}."
            )
        self.register_buffer("ids", ids.long(), persistent=False)
        self.gradient: TableGradient | None = None

    @staticmethod
    def consecutive(first: int, levels: int, size: int) -> "TokenTable":
        """The table whose ids count up from `first`, level by level."""
        return TokenTable(first + torch.arange(levels * size).view(levels, size))

    @property
    def levels(self) -> int:
        """L."""
        return self.ids.shape[0]

    @property
    def size(self) -> int:
        """K, the number of codes per level."""
        return self.ids.shape[1]

    def token_ids(self, codes: Tensor) -> Tensor:
        """Codes int64 `[..., L]` -> token ids `[..., L]`; no code may be -1 (features not finite)."""
        return torch.stack([row[codes[..., level]] for level, row in enumerate(self.ids)], dim=-1)

    def rows(self, embeddings: nn.Embedding) -> Tensor:
        """The table's rows `[L, K, h]`, detached."""
        return embeddings(self.ids.to(embeddings.weight.device)).detach()

    def read(self, tokens: VisionTokens, embeddings: nn.Embedding) -> Tensor:
        """The rows that codes select, summed over levels: `[B, N, h]` on the embedding's device.

        Rows of features that are not finite (code -1) are NaN, so that a loss of them is NaN too.

        Raises:
            CraftError: features need a gradient, and no rule is set.
        """
        codes = tokens.codes.to(self.ids.device)
        rows = embeddings(self.token_ids(codes.clamp(min=0))).sum(dim=-2)
        rows = rows.masked_fill((codes < 0).any(dim=-1, keepdim=True), float("nan"))
        if not (torch.is_grad_enabled() and tokens.features.requires_grad):
            return rows
        if self.gradient is None:
            raise CraftError(
                "A token table has no gradient of its own; set lvlm.backbone.table.gradient to a rule of "
                "craft.losses.table_gradient, as `craft adapt` does with losses.table_gradient."
            )
        features = tokens.features.to(rows.device)
        return through_table(features, codes, rows, self.gradient)
