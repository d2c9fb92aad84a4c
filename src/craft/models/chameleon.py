"""Chameleon's parts from transformers: VQ encoder as vision tower, and an output embedding for text."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonVQVAEEncoder,
    ChameleonVQVAEEncoderAttnBlock,
    ChameleonVQVAEEncoderResnetBlock,
)

from craft.models.stored import stored_values
from craft.models.vision_tower import VisionTower

_BLOCKS = (ChameleonVQVAEEncoderResnetBlock, ChameleonVQVAEEncoderAttnBlock)


class ChameleonTower(VisionTower):
    """What stands before the search in Chameleon's VQ model: a convolutional encoder and a 1 x 1 convolution.

    Its output is the vector that is compared with the codebook. It has no [CLS]. It is always in evaluation
    mode, because its blocks drop values in training mode (`dropout`).

    Args:
        config: `model` (a `ChameleonVQVAEConfig`, JSON-able), and `factor`, `mean`, `std` of the image
            processor: the encoder reads `(byte * factor - mean) / std`.

    Source: Chameleon (arXiv 2405.09818); `ChameleonVQVAE.encode` of transformers.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        model = ChameleonVQVAEConfig(**config["model"])
        self.config = {**config, "type": "chameleon"}
        self.siglip_config = model
        self.encoder = ChameleonVQVAEEncoder(model)
        self.quant_conv = nn.Conv2d(model.latent_channels, model.embed_dim, 1)
        self.image_size = model.resolution
        side = model.resolution >> (len(model.channel_multiplier) - 1)  # each level but one halves the sides
        self.grid = (side, side)
        self.dim = model.embed_dim
        self.train(False)

    @property
    def layers(self) -> nn.ModuleList:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The residual and attention blocks; they map `[B, C, h, w]` to the same."""
        return nn.ModuleList(module for module in self.encoder.modules() if isinstance(module, _BLOCKS))

    @property
    def settings(self) -> dict[str, Any]:
        """As `VisionTower.settings`: how pixels are normalised."""
        return {name: self.config[name] for name in ("factor", "mean", "std")}

    def train(self, mode: bool = True) -> "ChameleonTower":
        """Stay in evaluation mode, whatever `mode` is."""
        return super().train(False)

    def forward(self, pixel_values: Tensor, with_cls: bool = True) -> tuple[Tensor, None]:
        """As `VisionTower.forward`; the second value is always None, whatever `with_cls` is."""
        values = self._normalised(pixel_values).to(self.quant_conv.weight.dtype)
        return self.quant_conv(self.encoder(values)).flatten(2).transpose(1, 2), None

    def _normalised(self, pixel_values: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> the image processor's values float32, bit for bit.

        The bytes are restored first; values between them, which augmentation makes, are rounded to them.
        """
        values = ((pixel_values.float() + 1) * 127.5).round().double() * self.config["factor"]
        mean, std = (values.new_tensor(self.config[key]).view(3, 1, 1).float() for key in ("mean", "std"))
        return (values.float() - mean) / std

    def stored_per_image(self, recompute: bool | str) -> int:
        """As `VisionTower.stored_per_image`: counted by `stored_values`."""
        return stored_values(self, bool(recompute))


class TextHead(nn.Linear):
    """An output embedding that gives the tokens of images the lowest logit, as Chameleon's forward pass does.

    Args:
        head: the output embedding whose weight is used, not copied.
        image_ids: int64 `[K]`, the ids of the image tokens.
    """

    image_ids: Tensor

    def __init__(self, head: nn.Linear, image_ids: Tensor) -> None:
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")
        self.weight = head.weight
        self.register_buffer("image_ids", image_ids.to(head.weight.device), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Hidden states `[..., h]` -> logits `[..., V]`."""
        logits = super().forward(input)
        return logits.index_fill(-1, self.image_ids, torch.finfo(logits.dtype).min)
