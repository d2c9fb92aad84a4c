"""`VisionTokens`: the output of a visual tokenizer for a batch of images."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class VisionTokens:
    """Visual tokens of `B` images, `N` tokens each. Source: paper §3.1.

    Attributes:
        features: z, the output of the vision tower before quantisation, float32 `[B, N, d]`.
        codes: codeword numbers of every level, int64 `[B, N, L]`; level 1 is `codes[..., 0]`.
        quantized: z̃ `[B, N, d]`, exactly the sum of the codewords; passes gradient to `features` by
            straight-through if the tower ran with gradient.
        residual: squared distance to the level-1 codeword, e_i = ||z_i - c_i^(1)||², float32 `[B, N]`.
        positions: raster index of every token in the full grid, int64 `[B, N]` (the remaining ones after
            pruning).
        grid: (rows, columns) of the full, unpruned grid.
        cls: output of the learnable [CLS] token, `[B, d]`, or None.
        partial_sums: cumulative codeword sums after each level, `[B, N, L, d]`, or None.
        attention_mask: bool `[B, N]`, False on padding if rows have different numbers of tokens; None if no
            row is padded.
        floor_hit: bool `[B]` after pruning, True if the budget was below the number of distinct codes (§3.3);
            None without pruning.
    """

    features: Tensor
    codes: Tensor
    quantized: Tensor
    residual: Tensor
    positions: Tensor
    grid: tuple[int, int]
    cls: Tensor | None = None
    partial_sums: Tensor | None = None
    attention_mask: Tensor | None = None
    floor_hit: Tensor | None = None

    def __post_init__(self) -> None:
        expected = tuple(self.features.shape[:2])
        for name in ("codes", "quantized", "residual", "positions", "partial_sums", "attention_mask"):
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape[:2]) != expected:
                raise ValueError(
                    f"VisionTokens.{name} has shape {tuple(tensor.shape)}; "
                    f"its first two dimensions must be [B, N] = {list(expected)}, as in features"
                )
        for name in ("cls", "floor_hit"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape[0] != expected[0]:
                raise ValueError(
                    f"VisionTokens.{name} has {tensor.shape[0]} rows for a batch of {expected[0]}"
                )

    def __len__(self) -> int:
        """Number of images B."""
        return int(self.features.shape[0])

    def __getitem__(self, rows: slice) -> "VisionTokens":
        """The tokens of a slice of the images: `tokens[2:4]`.

        Raises:
            TypeError: `rows` is not a slice; an integer would drop the batch dimension.
        """
        if not isinstance(rows, slice):
            raise TypeError(f"VisionTokens takes a slice over the batch, as tokens[i:i+1], not {rows!r}")
        return replace(self, **{name: tensor[rows] for name, tensor in self._tensors().items()})

    def to(self, device: torch.device | str) -> "VisionTokens":
        """The same tokens on `device`."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}
