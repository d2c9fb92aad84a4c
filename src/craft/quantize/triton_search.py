"""The nearest codeword on tensor cores, accurate as float32 and without scores in memory: two Triton kernels.

Tensor cores multiply float16. A float32 is therefore split into a sum of two float16, `large + small`, after
division by a power of two for its row. A product is `small·large + large·small + large·large`, which keeps 22
of 24 bits and is summed in float32. Three such products cost less than one in float32.

Import it only where it can run: on CUDA, or in Triton's interpreter with TRITON_INTERPRET=1.
"""

from collections.abc import Callable
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from craft.quantize.tables import DEPTH, Tables

_ROWS, _CODES, _DEPTH = 128, 256, DEPTH  # sizes of a block of the product
_ROW_BATCH = 8192  # rows whose float16 are in memory at once
_STAGES, _WARPS = 4, 8  # maximum number of pairs of factors that load at once; groups of 32 threads


@triton.jit
def _split(values, parts, units, dim, depth, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    value = tl.load(values + row * dim + at, mask=at < dim, other=0.0)
    bits = tl.max(tl.abs(value), axis=0).to(tl.int32, bitcast=True)
    power = tl.minimum(
        tl.maximum(bits >> 23, 1), 253
    )  # bits of the exponent, so that both powers are normal numbers
    value *= ((254 - power) << 23).to(tl.float32, bitcast=True)
    large = value.to(tl.float16)
    small = (value - large.to(tl.float32)).to(tl.float16)
    tl.store(parts + row * 2 * depth + at, large, mask=at < depth)
    tl.store(parts + row * 2 * depth + depth + at, small, mask=at < depth)
    tl.store(units + row, (power << 23).to(tl.float32, bitcast=True))


@triton.jit
def _best(
    x, table, x_units, table_units, half_norms, scores, codes, n, size, depth, share,
    ROWS: tl.constexpr, CODES: tl.constexpr, DEPTH: tl.constexpr,
):  # type: ignore[no-untyped-def]  # fmt: skip
    row, first = tl.program_id(0) * ROWS, tl.program_id(1) * share
    rows = row + tl.arange(0, ROWS)
    row_units = tl.load(x_units + rows, mask=rows < n, other=0.0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    winner = tl.zeros([ROWS], tl.int32)
    for start in range(first, first + share, CODES):
        block = tl.zeros([ROWS, CODES], tl.float32)
        for step in range(0, 3 * depth, DEPTH):
            term = step // depth  # small·large, large·small, large·large: small sums first
            at = step - term * depth
            left = x.load([row, at + tl.where(term == 0, depth, 0)])
            right = table.load([start, at + tl.where(term == 1, depth, 0)])
            block = tl.dot(left, right.T, block)
        columns = start + tl.arange(0, CODES)
        units = tl.load(table_units + columns, mask=columns < size, other=0.0)
        norms = tl.load(half_norms + columns, mask=columns < size, other=float("inf"))
        block = block * units[None, :] * row_units[:, None] - norms[None, :]
        score = tl.max(block, axis=1)
        code = tl.min(tl.where(block == score[:, None], columns[None, :], size), axis=1)
        better = score > best  # strict: an equal score keeps the lower index
        best, winner = tl.where(better, score, best), tl.where(better, code, winner)
    out = rows.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(scores + out, best, mask=rows < n)
    tl.store(codes + out, winner, mask=rows < n)


def of_levels(tables: Tables) -> Callable[[Tensor, int], Tensor]:
    """The search at one level of a codebook, as a function of float32 `[n, d]` and the level -> int64 `[n]`.

    It subtracts the mean codeword from both sides, which keeps distances and reduces rounding.
    """

    def centred(codewords: Tensor) -> Tensor:
        return codewords - codewords.mean(1, keepdim=True)

    def derived(name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        table = tables.derived(f"fused: {name}", make)
        return table.expand(len(tables.levels), *table.shape[1:])

    middles = derived("middles", lambda c: c.mean(1))
    norms = derived("half norms", lambda c: centred(c).square().sum(-1) / 2)
    parts = derived("parts", lambda c: torch.stack([split(table)[0] for table in centred(c)]))
    units = derived("units", lambda c: torch.stack([split(table)[1] for table in centred(c)]))

    def search(residual: Tensor, level: int) -> Tensor:
        codewords = parts[level], units[level], norms[level]
        return torch.cat([nearest(rows - middles[level], *codewords) for rows in residual.split(_ROW_BATCH)])

    return search


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """Split float32 `[n, d]` into float16 `[n, 2 D]` (`large`, `small`, each `[n, D]`) times float32 `[n]`.

    D is d, padded with zeros to whole blocks.
    """
    n, width = values.shape
    depth = triton.cdiv(width, _DEPTH) * _DEPTH
    parts = torch.empty(n, 2 * depth, dtype=torch.float16, device=values.device)
    units = torch.empty(n, device=values.device)
    with torch.cuda.device_of(values):  # Triton launches on the current device, which may be another one
        _split[(n,)](  # type: ignore[index]
            values.contiguous(), parts, units, width, depth, WIDTH=triton.next_power_of_2(depth)
        )
    return parts, units


def nearest(x: Tensor, parts: Tensor, units: Tensor, half_norms: Tensor) -> Tensor:
    """The nearest codewords, like `craft.quantize.search.nearest_codes`; the lowest index wins ties.

    Args:
        x: float32 `[n, d]`.
        parts: float16 `[K, 2 D]`, from `split` of the codewords.
        units: float32 `[K]`, from `split` of the codewords.
        half_norms: float32 `[K]`, `|c|²/2`.

    Returns:
        int64 `[n]`.

    Source: Eq. 1; the kernels are ours, with the running maximum of FlashAttention. Sums of two float16
    for one float32: Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores", 2022.
    """
    n, size = len(x), len(parts)
    if not n:
        return torch.zeros(0, dtype=torch.int64, device=x.device)
    share, stages = _plan(n, size, x.device)
    grid = triton.cdiv(n, _ROWS), triton.cdiv(size, share)
    scores = torch.empty(n, grid[1], device=x.device)
    codes = torch.empty(n, grid[1], dtype=torch.int32, device=x.device)
    rows, row_units = split(x)
    left = TensorDescriptor.from_tensor(rows, [_ROWS, _DEPTH])
    right = TensorDescriptor.from_tensor(parts, [_CODES, _DEPTH])
    with torch.cuda.device_of(x):
        _best[grid](  # type: ignore[index]
            left, right, row_units, units, half_norms, scores, codes, n, size, parts.shape[1] // 2, share,
            ROWS=_ROWS, CODES=_CODES, DEPTH=_DEPTH, num_warps=_WARPS, num_stages=stages,
        )  # fmt: skip
    return codes.gather(1, scores.argmax(1, keepdim=True))[
        :, 0
    ].long()  # the first maximum, so the lowest index


@cache
def _plan(n: int, size: int, device: torch.device) -> tuple[int, int]:
    """Number of codewords per program, chosen to keep all processors busy, and number of stages."""
    blocks, tiles = triton.cdiv(n, _ROWS), triton.cdiv(size, _CODES)
    if device.type != "cuda":  # the interpreter
        return triton.cdiv(tiles, 3) * _CODES, 1
    properties = torch.cuda.get_device_properties(device)

    def cost(taken: int) -> float:  # in blocks; starting and ending a program costs about a tenth of one
        waves = triton.cdiv(blocks * triton.cdiv(tiles, taken), properties.multi_processor_count)
        return waves * (taken + 0.1)

    stages = properties.shared_memory_per_block_optin // (2 * (_ROWS + _CODES) * _DEPTH)
    return min(range(tiles, 0, -1), key=cost) * _CODES, min(stages, _STAGES)
