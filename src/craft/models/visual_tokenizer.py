"""The visual tokenizer: vision tower and frozen codebook, image -> `VisionTokens` (§3.1)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.errors import CraftError
from craft.core.tokens import VisionTokens
from craft.models.images import pixels
from craft.quantize import Continuous, ResidualCodebook, straight_through, tower_fingerprint


class VisualTokenizer(nn.Module):
    """Vision tower E_θ + codebook C, with what the contrastive loss and pruning need beside them.

    Attributes:
        vision_tower: pixels `[B, 3, S, S]` -> (features `[B, N, d]`, [CLS] `[B, d]`); the trainable part.
        codebook: `ResidualCodebook`, frozen; `Continuous` in a continuous LVLM, which reads features
            unquantised.
        text_encoder: the frozen text encoder of the contrastive loss, or None.
        log_temperature: log τ of Eq. 4, a scalar parameter (`s_ij = τ cos`).
        prior: level-1 code counts int64 `[K]` (§3.3), or None where no prior came with the tokenizer.
        aspect: "resize", "crop", "pad" or "pad-clip", see `craft.models.images.pixels`.

    Source: §3.1.
    """

    log_temperature: nn.Parameter

    def __init__(
        self,
        vision_tower: nn.Module,
        codebook: ResidualCodebook | Continuous,
        text_encoder: nn.Module | None = None,
        log_temperature: float | Tensor = 2.302585,
        prior: Tensor | None = None,
        aspect: str = "resize",
    ) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.codebook = codebook
        self.text_encoder = text_encoder
        self.log_temperature = nn.Parameter(
            torch.as_tensor(log_temperature, dtype=torch.float32).reshape(()).clone()
        )
        self.prior = prior
        self.aspect = aspect

    @property
    def device(self) -> torch.device:
        """Where the vision tower's weights are."""
        return next(self.vision_tower.parameters()).device

    @property
    def image_size(self) -> int:
        """Side S of the square input, in pixels."""
        return int(self.vision_tower.image_size)  # type: ignore[arg-type]

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patch grid; N is their product."""
        return self.vision_tower.grid  # type: ignore[return-value]

    @property
    def continuous(self) -> bool:
        """Whether features leave unquantised: there are no codes then (`codes` is `[B, N, 0]`)."""
        return self.codebook.num_levels == 0

    def need_codes(self, what: str) -> ResidualCodebook:
        """The codebook; `what` cannot be done without its codes.

        Raises:
            CraftError: this is the visual tokenizer of a continuous LVLM.
        """
        if isinstance(self.codebook, Continuous):
            raise CraftError(
                f"{what} needs codes, and a continuous LVLM has none: its LLM reads the vision tower's "
                "features without a codebook. Use a discrete LVLM, such as craft-tiny/qwen2."
            )
        return self.codebook

    def unquantised(self) -> "VisualTokenizer":
        """The same (all parts shared) without its codebook: that of a continuous LVLM."""
        tower: Any = self.vision_tower
        codebook = Continuous(int(tower.dim), tower_fingerprint(tower.state_dict()))
        made = VisualTokenizer(
            tower, codebook, self.text_encoder, self.log_temperature.detach(), None, self.aspect
        )
        return made.to(self.device).train(self.training)

    def preprocess(self, images: Sequence[Any]) -> Tensor:
        """Images (paths, bytes, PIL, arrays) -> pixels float32 `[B, 3, S, S]` on the CPU.

        Raises:
            DataError: an image cannot be read.
        """
        return pixels(images, self.image_size, self.aspect)

    def forward(
        self, pixel_values: Tensor, partial_sums: bool = False, with_cls: bool = True
    ) -> VisionTokens:
        """Encode and quantise, with gradient to the tower by straight-through.

        Args:
            pixel_values: float `[B, 3, S, S]`.
            partial_sums: also return the sum after each level (for the cumulative commitment).
            with_cls: run [CLS] too, which no code and no answer depends on.

        Returns:
            `VisionTokens`; features and quantized are float32 whatever dtype the tower runs in.

        Source: Eq. 1; §9 for the levels.
        """
        return self.quantize(*self.vision_tower(pixel_values, with_cls), partial_sums=partial_sums)

    def quantize(
        self, features: Tensor, cls: Tensor | None, partial_sums: bool = False, search: str = "exact"
    ) -> VisionTokens:
        """The second half of `forward`: what the tower returned -> `VisionTokens`.

        `search` is that of `ResidualCodebook.quantize`.
        """
        features = features.float()
        found = self.codebook.quantize(features, partial_sums=partial_sums, search=search)
        batch, count = features.shape[:2]
        return VisionTokens(
            features=features,
            codes=found.codes,
            quantized=straight_through(features, found.quantized),
            residual=found.residual,
            positions=torch.arange(count, device=features.device).expand(batch, count),
            grid=self.grid,
            cls=None if cls is None else cls.float(),
            partial_sums=found.partial_sums,
        )

    @torch.no_grad()
    def encode(
        self,
        images: Sequence[Any] | Tensor,
        batch_size: int = 64,
        with_cls: bool = True,
        search: str = "exact",
    ) -> VisionTokens:
        """Images or pixels -> `VisionTokens`, without gradient, `batch_size` images at a time.

        Args:
            images: a sequence as `preprocess` takes it, or pixels float `[B, 3, S, S]`.
            batch_size: images per forward pass; an image's tokens do not depend on it.
            with_cls: as for `forward`.
            search: as for `quantize`.

        Raises:
            DataError: an image cannot be read, or there is none.
            ConfigError: there is no such search, or it does not fit this codebook or device.
        """
        count = len(images)
        parts = []
        for start in range(0, max(count, 1), batch_size):
            chunk = images[start : start + batch_size]
            values = chunk if isinstance(chunk, Tensor) else self.preprocess(chunk)
            parts.append(self.quantize(*self.vision_tower(values.to(self.device), with_cls), search=search))
        return parts[0] if len(parts) == 1 else concatenate(parts)


def concatenate(parts: Sequence[VisionTokens]) -> VisionTokens:
    """Join tokens along the batch. All parts come from one tokenizer and have the same N.

    Optional fields are kept when every part has them.
    """

    def join(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else torch.cat(values)

    first = parts[0]
    return VisionTokens(
        features=torch.cat([part.features for part in parts]),
        codes=torch.cat([part.codes for part in parts]),
        quantized=torch.cat([part.quantized for part in parts]),
        residual=torch.cat([part.residual for part in parts]),
        positions=torch.cat([part.positions for part in parts]),
        grid=first.grid,
        cls=join("cls"),
        partial_sums=join("partial_sums"),
        attention_mask=join("attention_mask"),
        floor_hit=join("floor_hit"),
    )
