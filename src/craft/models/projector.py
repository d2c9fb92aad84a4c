"""The projector g_φ: visual tokens of width d -> embeddings of the LLM's width (§3.1)."""

import re
from typing import Any

from torch import Tensor, nn

from craft.core.errors import CheckpointError


class Projector(nn.Module):
    """A linear map, or an MLP with GELU between linear maps; weights named as in VILA-U (`layers.*`).

    Args:
        config: `{"type": "linear" | "mlp{n}x_gelu", "in": d, "out": d_LM}`.

    Raises:
        CheckpointError: the type is unknown or a key is missing.

    Source: VILA-U's multimodal projector.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        try:
            kind, width_in, width_out = str(config["type"]), int(config["in"]), int(config["out"])
        except KeyError as missing:
            raise CheckpointError(
                f"The projector's config lacks {missing}; it needs type, in and out."
            ) from missing
        self.config: dict[str, str | int] = {"type": kind, "in": width_in, "out": width_out}
        depth = re.fullmatch(r"mlp(\d+)x_gelu", kind)
        if kind == "linear":
            self.layers: nn.Module = nn.Linear(width_in, width_out)
        elif depth and int(depth.group(1)) >= 1:
            stack: list[nn.Module] = [nn.Linear(width_in, width_out)]
            for _ in range(1, int(depth.group(1))):
                stack += [nn.GELU(), nn.Linear(width_out, width_out)]
            self.layers = nn.Sequential(*stack)
        else:
            raise CheckpointError(
                f"The projector type {kind!r} is unknown; this version builds 'linear' and 'mlp{{n}}x_gelu'."
            )

    def forward(self, quantized: Tensor) -> Tensor:
        """z̃ `[..., d]` -> `[..., d_LM]`, in the projector's dtype."""
        return self.layers(quantized)
