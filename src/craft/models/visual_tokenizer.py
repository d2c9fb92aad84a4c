"""The visual tokenizer: vision tower and frozen codebook, image -> `VisionTokens` (§3.1)."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from craft.core.errors import CraftError
from craft.core.tokens import VisionTokens
from craft.models.images import pixels
from craft.models.text_encoder import TextEncoder
from craft.models.vision_tower import VisionTower
from craft.quantize import Continuous, ResidualCodebook, straight_through, tower_fingerprint


class VisualTokenizer(nn.Module):
    """Vision tower E_θ + codebook C, and what the contrastive loss and pruning need in addition.

    Attributes:
        vision_tower: pixels `[B, 3, S, S]` -> (features `[B, N, d]`, [CLS] `[B, d]`); the trainable part.
        codebook: a frozen `ResidualCodebook`; a `Continuous` in a continuous LVLM, whose LLM reads the
            features themselves.
        text_encoder: the frozen text encoder of the contrastive loss, or None.
        log_temperature: log τ of Eq. 4, a scalar parameter (`s_ij = τ cos`).
        prior: level-1 code counts int64 `[K]` (§3.3), or None.
        aspect: how images become square: "resize", "crop", "crop-lanczos", "pad" or "pad-clip", as in
            `craft.models.images.pixels`.

    Source: §3.1.
    """

    vision_tower: VisionTower
    codebook: ResidualCodebook | Continuous
    text_encoder: TextEncoder | None
    log_temperature: nn.Parameter

    def __init__(
        self,
        vision_tower: VisionTower,
        codebook: ResidualCodebook | Continuous,
        text_encoder: TextEncoder | None = None,
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

    if TYPE_CHECKING:

        def __call__(
            self, pixel_values: Tensor, partial_sums: bool = False, with_cls: bool = True
        ) -> VisionTokens: ...

    @property
    def device(self) -> torch.device:
        """Where the vision tower's weights are."""
        return next(self.vision_tower.parameters()).device

    @property
    def image_size(self) -> int:
        """Side S of the square input, in pixels."""
        return self.vision_tower.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patch grid; N is their product."""
        return self.vision_tower.grid

    @property
    def continuous(self) -> bool:
        """Whether features are not quantised; then `codes` is `[B, N, 0]`."""
        return self.codebook.num_levels == 0

    def need_codes(self, what: str) -> ResidualCodebook:
        """The codebook, for `what` (the subject of the message), which needs codes.

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
        """The same visual tokenizer without its codebook, as in a continuous LVLM; parts are shared."""
        tower = self.vision_tower
        codebook = Continuous(tower.dim, tower_fingerprint(tower.state_dict()))
        visual = VisualTokenizer(
            tower, codebook, self.text_encoder, self.log_temperature.detach(), None, self.aspect
        )
        return visual.to(self.device).train(self.training)

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
            with_cls: run [CLS] too; no code and no answer depends on it.

        Returns:
            `VisionTokens`; features and quantized are float32 in whatever dtype the tower runs.

        Source: Eq. 1; §9 for the levels.
        """
        return self.quantize(*self.vision_tower(pixel_values, with_cls), partial_sums=partial_sums)

    def quantize(
        self, features: Tensor, cls: Tensor | None, partial_sums: bool = False, search: str = "exact"
    ) -> VisionTokens:
        """The second half of `forward`: the tower's output -> `VisionTokens`.

        Args:
            features: `[B, N, d]`, any float dtype.
            cls: `[B, d]` or None.
            partial_sums: as for `forward`.
            search: as for `ResidualCodebook.quantize`.
        """
        features = features.float()
        result = self.codebook.quantize(features, partial_sums=partial_sums, search=search)
        batch, count = features.shape[:2]
        return VisionTokens(
            features=features,
            codes=result.codes,
            quantized=straight_through(features, result.quantized),
            residual=result.residual,
            positions=torch.arange(count, device=features.device).expand(batch, count),
            grid=self.grid,
            cls=None if cls is None else cls.float(),
            partial_sums=result.partial_sums,
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
            images: a sequence as for `preprocess`, or pixels float `[B, 3, S, S]`.
            batch_size: images per forward pass; an image's tokens do not depend on it.
            with_cls: as for `forward`.
            search: as for `quantize`.

        Raises:
            DataError: an image cannot be read, or `images` is empty.
            CraftError: features are not finite; the image is named, and the weight if that is the cause.
            ConfigError: the search is unknown, or does not fit this codebook or device.
        """
        count = len(images)
        parts = []
        for start in range(0, max(count, 1), batch_size):
            chunk = images[start : start + batch_size]
            values = chunk if isinstance(chunk, Tensor) else self.preprocess(chunk)
            parts.append(self.quantize(*self.vision_tower(values.to(self.device), with_cls), search=search))
            self._check_finite(parts[-1].features, start)
        return parts[0] if len(parts) == 1 else concatenate(parts)

    def _check_finite(self, features: Tensor, start: int) -> None:
        """Refuse features `[B, N, d]` with NaN or infinity, of the images from number `start` on."""
        if not features.numel() or bool(torch.stack(torch.aminmax(features)).isfinite().all()):
            return
        image = start + int((~features.isfinite()).flatten(1).any(dim=1).nonzero()[0, 0])
        state = self.vision_tower.state_dict().items()
        bad = next((name for name, value in state if not bool(value.isfinite().all())), None)
        cause = (
            "the image or a number format of too small a range (use dtype float32)"
            if bad is None
            else f"its weight {bad}, which is not finite either; load the model again"
        )
        raise CraftError(
            f"The vision tower's features of image {image + 1} are not finite (NaN or infinity), so they "
            f"have no codes. The cause is {cause}."
        )


def concatenate(parts: Sequence[VisionTokens]) -> VisionTokens:
    """Join tokens of one visual tokenizer along the batch; all parts have the same N.

    The result has an optional field only if every part has it.
    """

    def join(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else torch.cat(values)

    joined: dict[str, Any] = {
        field.name: join(field.name) for field in fields(VisionTokens) if field.name != "grid"
    }
    return VisionTokens(**joined, grid=parts[0].grid)
