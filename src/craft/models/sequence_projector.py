"""UniTok's projector, which mixes tokens: causal attention, then a layer norm and an MLP."""

from typing import Any

from torch import Tensor, nn

from craft.models.vitamin import AttentionProjection


class SequenceProjector(nn.Module):
    """A projector over the sequence: token t depends on all tokens up to t.

    Tokens that pruning drops never reach it, as in the paper: it sees the remaining tokens as its sequence.
    Projecting all tokens first and dropping afterwards gives other embeddings.

    Args:
        config: `{"type": "unitok", "in": d, "width": of the tower, "inner": of the gated MLP, "out": d_LM}`.

    Source: UniTok's MLLM (`multi_embedder`).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        width, out = config["width"], config["out"]
        self.attn_projection = AttentionProjection(config["in"], width, config["inner"], causal=True)
        self.mm_projector = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6), nn.Linear(width, out), nn.GELU(), nn.Linear(out, out)
        )

    def forward(self, quantized: Tensor) -> Tensor:
        """z̃ `[B, N, d]` -> `[B, N, d_LM]`, in the projector's dtype."""
        return self.mm_projector(self.attn_projection(quantized))
