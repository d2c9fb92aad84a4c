"""TA-Tok's vision tower: SigLIP layers, average pooling, two linear maps, unit length (Tar)."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

from craft.models.vision_tower import ClsTower


class TaTokTower(ClsTower):
    """SigLIP up to the penultimate layer, pooled, and mapped to the width of TA-Tok's codebook.

    Features have unit length, as the codewords do; the two are compared by cosine.

    Args:
        config: as for `SiglipTower`, with `dim` (d) and `scale` (the side of the squares of patches that are
            averaged into one token; 1, 2 or 3 in Tar).

    Source: Tar (arXiv 2506.18898). Pooling comes before the linear maps; patches that fill no square are
    dropped.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__({**config, "type": "ta-tok"}, layers=config["num_hidden_layers"] - 1)
        self.embeddings = SiglipVisionEmbeddings(cast(SiglipVisionConfig, self.siglip_config))
        self.side = self.image_size // config["patch_size"]
        self.dim = config["dim"]
        hidden = self.siglip_config.hidden_size
        self.task_layer = nn.Linear(hidden, hidden)
        self.in_linear = nn.Linear(hidden, self.dim)

    @property
    def scale(self) -> int:
        """The side of the squares that are averaged. It is in `config`, so it is saved too."""
        return self.config["scale"]

    @property
    def settings(self) -> dict[str, Any]:
        """As `VisionTower.settings`: the scale too."""
        return super().settings | ({} if self.scale == 1 else {"scale": self.scale})

    @property
    def grid(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(rows, columns) of tokens."""
        return (self.side // self.scale, self.side // self.scale)

    def forward(self, pixel_values: Tensor, with_cls: bool = True) -> tuple[Tensor, Tensor | None]:
        """As `VisionTower.forward`; features and [CLS] have unit length."""
        patches, cls = self._run(self.embeddings(pixel_values.to(self.cls_token.dtype)), with_cls)
        squares = patches.transpose(1, 2).unflatten(2, (self.side, self.side))
        pooled = F.avg_pool2d(squares, self.scale).flatten(2).transpose(1, 2)
        return self._out(pooled), None if cls is None else self._out(cls[:, 0])

    def _out(self, x: Tensor) -> Tensor:
        return F.normalize(self.in_linear(torch.tanh(self.task_layer(x))), dim=-1)
