"""The nearest codeword as one Triton kernel: matrix product and running maximum, no scores in memory.

Imported only where it runs: on CUDA, or with TRITON_INTERPRET=1 in Triton's interpreter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _CODES, _DEPTH = 64, 128, 32  # of one program's block of the product


@triton.jit
def _kernel(
    x, table, half_norms, index, n, size, dim, ROWS: tl.constexpr, CODES: tl.constexpr, DEPTH: tl.constexpr
):  # type: ignore[no-untyped-def]
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    found = tl.zeros([ROWS], tl.int64)
    for start in range(0, size, CODES):
        codes = start + tl.arange(0, CODES)
        scores = tl.zeros([ROWS, CODES], tl.float32)
        for first in range(0, dim, DEPTH):
            at = first + tl.arange(0, DEPTH)
            left = tl.load(
                x + rows[:, None] * dim + at[None, :],
                mask=(rows[:, None] < n) & (at[None, :] < dim),
                other=0.0,
            )
            right = tl.load(
                table + codes[None, :].to(tl.int64) * dim + at[:, None],
                mask=(codes[None, :] < size) & (at[:, None] < dim),
                other=0.0,
            )
            scores = tl.dot(left, right, scores, input_precision="ieee")
        norms = tl.load(half_norms + codes, mask=codes < size, other=float("inf"))
        scores = scores - norms[None, :]
        score, place = tl.max(scores, axis=1, return_indices=True, return_indices_tie_break_left=True)
        better = score > best  # strict: an equal score keeps the lower index
        best = tl.where(better, score, best)
        found = tl.where(better, start + place, found)
    tl.store(index + rows, found, mask=rows < n)


def nearest(x: Tensor, table: Tensor, half_norms: Tensor) -> Tensor:
    """What `craft.quantize.search.nearest_codes` gives, in float32 without TF32; ties to the lowest index.

    Args:
        x: float32 `[n, d]`.
        table: float32 `[K, d]`.
        half_norms: float32 `[K]`, `|c|²/2`.

    Returns:
        int64 `[n]`.

    Source: Eq. 1; the kernel is ours, after FlashAttention's running maximum.
    """
    index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    if len(x):
        grid = (triton.cdiv(len(x), _ROWS),)
        given = x.contiguous(), table.contiguous(), half_norms.contiguous(), index
        sizes = len(x), len(table), x.shape[1]
        with torch.cuda.device_of(x):  # Triton launches on the current device, which may be another
            _kernel[grid](*given, *sizes, ROWS=_ROWS, CODES=_CODES, DEPTH=_DEPTH)  # type: ignore[index]
    return index
