"""The frozen residual codebook (§3.1, §9), the gradient past it (§3.2), and how often codes occur (§3.3)."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from craft.core.errors import CheckpointError, CraftError
from craft.quantize.search import exact_matmul, search_named


@dataclass(frozen=True)
class Quantized:
    """The result of quantising features `[..., d]`.

    Attributes:
        codes: int64 `[..., L]`; `codes[..., 0]` is the paper's "token ID".
        quantized: float32 `[..., d]`, exactly the sum of the chosen codewords, added level by level.
        residual: float32 `[...]`, `e = |z - c⁽¹⁾|²`, the squared residual at level 1 (§9).
        partial_sums: float32 `[..., L, d]`, the sum after each level, or None.
    """

    codes: Tensor
    quantized: Tensor
    residual: Tensor
    partial_sums: Tensor | None = None


class ResidualCodebook(nn.Module):
    """L levels of K codewords; frozen, with no training behaviour at all.

    The codewords are a float32 buffer without gradient or EMA. Nothing depends on `.train()`, and a change of
    the module's dtype does not cast them, so codes and fingerprint never depend on precision settings.

    Args:
        levels: `[L, K, d]`, or a list of L tensors `[K, d]`. If all entries of the list are the same tensor
            object, levels share the codebook, which is stored once.
        fingerprint: of a codebook that is derived from other tensors (`derived_fingerprint`); None: that of
            the codewords.

    Raises:
        CheckpointError: there are no levels, they differ in shape, or a value is not finite.

    Source: §3.1 and §9 (VILA-U: K = 16384, L = 4).
    """

    codewords: Tensor

    def __init__(self, levels: Tensor | Sequence[Tensor], fingerprint: str | None = None) -> None:
        super().__init__()
        self._derived_fingerprint = fingerprint
        tables = list(levels)
        if not tables or any(table.ndim != 2 or table.shape != tables[0].shape for table in tables):
            shapes = [tuple(table.shape) for table in tables]
            raise CheckpointError(
                f"A codebook needs one [K, d] table per level, all of one shape; got {shapes}."
            )
        self.shared = len(tables) > 1 and all(table is tables[0] for table in tables)
        self.num_levels = len(tables)
        stored = tables[:1] if self.shared else tables
        codewords = torch.stack([table.detach().to(torch.float32) for table in stored])
        if codewords.device.type != "meta" and not bool(torch.isfinite(codewords).all()):
            raise CheckpointError(
                "The codebook has values that are not finite: its file is damaged; copy it again."
            )
        self.register_buffer("codewords", codewords)
        self._derived: dict[str, tuple[tuple[int, int, torch.device], Tensor]] = {}
        self._fingerprint: tuple[tuple[int, int, torch.device], str] | None = None

    @property
    def levels(self) -> Tensor:
        """float32 `[L, K, d]`; a view, even if all levels share one table."""
        return self.codewords.expand(self.num_levels, -1, -1)

    @property
    def size(self) -> int:
        """K, the number of codewords per level."""
        return self.codewords.shape[1]

    @property
    def dim(self) -> int:
        """d, the width of a codeword."""
        return self.codewords.shape[2]

    @property
    def half_norms(self) -> Tensor:
        """float32 `[L, K]`, `|c|²/2`."""
        return self.derived("half norms", lambda c: c.square().sum(-1) / 2).expand(self.num_levels, -1)

    def derived(self, name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        """`make(codewords)` for codewords float32 `[1 or L, K, d]`, cached until they change or move."""
        key = self._key()
        if name not in self._derived or self._derived[name][0] != key:
            with exact_matmul(self.codewords.device):
                self._derived[name] = (key, make(self.codewords))
        return self._derived[name][1]

    @property
    def is_product(self) -> bool:
        """Whether levels fill different entries of a codeword (product quantisation), so none comes first."""
        if self.num_levels == 1 or self.codewords.is_meta:
            return False
        filled = self.derived("filled entries", lambda c: c.abs().amax(dim=1) > 0)
        return bool((filled.expand(self.num_levels, -1).sum(dim=0) <= 1).all())

    @property
    def is_derived(self) -> bool:
        """Whether its fingerprint is that of other tensors, from which the codewords were computed."""
        return self._derived_fingerprint is not None

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the little-endian float32 bytes of all levels, then K, L, d and the metric.

        A shared table counts once per level, so the fingerprint does not depend on how a codebook is stored.
        A derived codebook has that of the tensors it was derived from.
        """
        if self._derived_fingerprint is not None:
            return self._derived_fingerprint
        key = self._key()
        if self._fingerprint is None or self._fingerprint[0] != key:
            digest = hashlib.sha256()
            for level in self.levels:
                digest.update(level.detach().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())
            digest.update(f"K={self.size} L={self.num_levels} d={self.dim} metric=l2".encode())
            self._fingerprint = (key, digest.hexdigest())
        return self._fingerprint[1]

    @torch.no_grad()
    def quantize(self, z: Tensor, partial_sums: bool = False, search: str = "exact") -> Quantized:
        """Quantise features level by level, in float32 for every dtype of `z` and autocast.

        Features with NaN or infinity have no nearest codeword: their codes are -1, their sums NaN, so that a
        loss of them is NaN too. (To raise an error here, every training step would wait for the GPU.)

        Args:
            z: `[..., d]`, any float dtype. No gradient flows: see `straight_through`.
            partial_sums: also return the sum after each level (for the cumulative commitment form).
            search: how codewords are found: a key of `craft.quantize.search.SEARCHES`, or "auto". Others than
                "exact" may differ from it between codewords that are equally near.

        Returns:
            `Quantized`.

        Raises:
            CheckpointError: the last dimension of `z` is not d.
            ConfigError: the search is unknown, or does not fit this codebook or device.

        Source: Eq. 1 at each level; §9 for the residuals.
        """
        if z.shape[-1] != self.dim:
            raise CheckpointError(
                f"Features of width {z.shape[-1]} do not fit a codebook of width {self.dim}; combine a "
                "vision tower and a codebook of one model."
            )
        with exact_matmul(z.device):
            remainder = z.detach().reshape(-1, self.dim).float()
            codes = search_named(search, self)(remainder, self)  # Eq. 1, level by level
            total = torch.zeros_like(remainder)
            sums = []
            residual = remainder.new_zeros(remainder.shape[0])
            for level, table in enumerate(self.levels):
                chosen = table[codes[:, level]]
                total += chosen  # z̃ = Σ c⁽ˡ⁾ (§9)
                if level == 0:
                    residual = (remainder - chosen).square_().sum(-1)  # e (§9)
                if partial_sums:
                    sums.append(total.clone())
            without = ~residual.isfinite()[:, None]
            codes.masked_fill_(without, -1)
            for part in (total, *sums):
                part.masked_fill_(without, math.nan)
        shape = z.shape[:-1]
        return Quantized(
            codes=codes.reshape(*shape, self.num_levels),
            quantized=total.reshape(z.shape),
            residual=residual.reshape(shape),
            partial_sums=torch.stack(sums, dim=-2).reshape(*shape, self.num_levels, self.dim)
            if sums
            else None,
        )

    @torch.no_grad()
    def lookup(self, codes: Tensor) -> Tensor:
        """Codeword sums float32 `[..., d]` for codes int64 `[..., L]`; bit-equal to `quantize`'s."""
        total = torch.zeros(*codes.shape[:-1], self.dim, device=self.codewords.device)
        for level, table in enumerate(self.levels):
            total = total + table[codes[..., level]]
        return total

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        return f"L={self.num_levels}, K={self.size}, d={self.dim}, shared={self.shared}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": {}}  # a copy computes them again

    def _key(self) -> tuple[int, int, torch.device]:
        table = self.codewords
        version = 0 if table.is_inference() else table._version  # tensors from inference mode have no version
        return (table.data_ptr(), version, table.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ResidualCodebook":
        exact = self.codewords
        super()._apply(fn, recurse)
        if self.codewords.dtype != torch.float32:  # .half(), .to(bfloat16): move, but keep the values
            self.codewords = exact.to(self.codewords.device)
        return self


def derived_fingerprint(tensors: Mapping[str, Tensor], kind: str, metric: str) -> str:
    """The fingerprint of a codebook that is derived from stored tensors, whatever its dtype.

    SHA-256 (hex) over names, shapes and values of the tensors rounded to bfloat16, then kind and metric.

    Args:
        tensors: the stored tensors by name.
        kind: how the codewords follow from them, such as "simvq".
        metric: what the search compares, such as "cosine".

    Source: ours; copies of TA-Tok are public in float32 and in bfloat16.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        rounded = tensors[name].detach().cpu().to(torch.bfloat16).contiguous()
        digest.update(f"{name} {list(rounded.shape)} ".encode())
        digest.update(rounded.view(torch.int16).numpy().astype("<i2", copy=False).tobytes())
    digest.update(f"kind={kind} metric={metric}".encode())
    return digest.hexdigest()


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, quantized: Tensor) -> Tensor:
        ctx.features_dtype = features.dtype
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0].to(ctx.features_dtype), None


def straight_through(features: Tensor, quantized: Tensor) -> Tensor:
    """Return `quantized` unchanged; pass its gradient to `features` unchanged.

    The usual `z + (q - z).detach()` rounds: in bfloat16, 17 % of its elements differ from the codeword sum,
    so the LLM no longer sees codewords. Here the forward value is bit-identical to `quantized`.

    Args:
        features: `[..., d]`, any float dtype; gets the gradient.
        quantized: `[..., d]`, the codeword sum; gets none.

    Returns:
        `[..., d]` equal to `quantized`.

    Source: §3.2 ("straight-through estimator"); the form is ours.
    """
    return _StraightThrough.apply(features, quantized)  # type: ignore[no-any-return]


def code_counts(codes: Tensor, size: int) -> Tensor:
    """Count level-1 codes: int64 `[K]` from codes int64 `[..., L]` (p_dom before normalising, §3.3).

    Raises:
        CraftError: a code is negative, because its features were not finite.
    """
    level = codes[..., 0].reshape(-1)
    if level.numel() and int(level.min()) < 0:
        raise CraftError("Some features are not finite (NaN or infinity), so they have no codes to count.")
    return torch.bincount(level, minlength=size)


def usage(codes: Tensor, size: int) -> list[dict[str, float]]:
    """Per level, the fraction of codewords that occur and the perplexity of their distribution.

    Args:
        codes: int64 `[..., L]`.
        size: K.

    Returns:
        One dict per level with `used` in [0, 1] and `perplexity` in [1, K].
    """
    rows = []
    for level in range(codes.shape[-1]):
        counts = code_counts(codes[..., level, None], size).double()
        p = counts / counts.sum().clamp(min=1)
        entropy = -(p[p > 0] * p[p > 0].log()).sum()
        rows.append({"used": float((counts > 0).double().mean()), "perplexity": float(entropy.exp())})
    return rows
