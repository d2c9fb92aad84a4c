"""The nearest codeword on tensor cores, as careful as float32, and no scores in memory: two Triton kernels.

Tensor cores multiply float16. A float32 is therefore taken as a sum of two float16, `large + small`, after a
division by a power of two that fits its row; a product is `small·large + large·small + large·large`, which
keeps 22 of 24 bits and is summed in float32. Three fast products cost less than one in float32.

Imported only where it runs: on CUDA, or with TRITON_INTERPRET=1 in Triton's interpreter.
"""

from collections.abc import Callable
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from craft.quantize.tables import DEPTH, Tables

_ROWS, _CODES, _DEPTH = 128, 256, DEPTH  # of one block of the product
_ROWS_AT_ONCE = 8192  # whose float16 are in memory
_STAGES, _WARPS = 4, 8  # pairs of factors on their way from memory at most; groups of 32 threads


@triton.jit
def _split(values, parts, units, dim, depth, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    value = tl.load(values + row * dim + at, mask=at < dim, other=0.0)
    bits = tl.max(tl.abs(value), axis=0).to(tl.int32, bitcast=True)
    power = tl.minimum(tl.maximum(bits >> 23, 1), 253)  # the exponent's bits, where both powers are normal
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
    found = tl.zeros([ROWS], tl.int32)
    for start in range(first, first + share, CODES):
        block = tl.zeros([ROWS, CODES], tl.float32)
        for step in range(0, 3 * depth, DEPTH):
            term = step // depth  # small·large, large·small, large·large: small sums first
            at = step - term * depth
            left = x.load([row, at + tl.where(term == 0, depth, 0)])
            right = table.load([start, at + tl.where(term == 1, depth, 0)])
            block = tl.dot(left, right.T, block)
        here = start + tl.arange(0, CODES)
        units = tl.load(table_units + here, mask=here < size, other=0.0)
        norms = tl.load(half_norms + here, mask=here < size, other=float("inf"))
        block = block * units[None, :] * row_units[:, None] - norms[None, :]
        score = tl.max(block, axis=1)
        code = tl.min(tl.where(block == score[:, None], here[None, :], size), axis=1)
        better = score > best  # strict: an equal score keeps the lower index
        best, found = tl.where(better, score, best), tl.where(better, code, found)
    out = rows.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(scores + out, best, mask=rows < n)
    tl.store(codes + out, found, mask=rows < n)


def of_levels(tables: Tables) -> Callable[[Tensor, int], Tensor]:
    """The search at one level of a codebook: of float32 `[n, d]` and the level, int64 `[n]`.

    The mean codeword is taken off both sides: distances stay, and there is less to round.
    """

    def centred(codewords: Tensor) -> Tensor:
        return codewords - codewords.mean(1, keepdim=True)

    def derived(name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        made = tables.derived(f"fused: {name}", make)
        return made.expand(len(tables.levels), *made.shape[1:])

    middles = derived("middles", lambda c: c.mean(1))
    norms = derived("half norms", lambda c: centred(c).square().sum(-1) / 2)
    parts = derived("parts", lambda c: torch.stack([split(table)[0] for table in centred(c)]))
    units = derived("units", lambda c: torch.stack([split(table)[1] for table in centred(c)]))

    def found(rest: Tensor, level: int) -> Tensor:
        given = parts[level], units[level], norms[level]
        return torch.cat([nearest(rows - middles[level], *given) for rows in rest.split(_ROWS_AT_ONCE)])

    return found


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """float32 `[n, d]` as float16 `[n, 2 D]` times float32 `[n]`: `large`, then `small`, each `[n, D]`.

    D is d, filled up with zeros to whole blocks.
    """
    n, width = values.shape
    depth = triton.cdiv(width, _DEPTH) * _DEPTH
    parts = torch.empty(n, 2 * depth, dtype=torch.float16, device=values.device)
    units = torch.empty(n, device=values.device)
    with torch.cuda.device_of(values):  # Triton launches on the current device, which may be another
        _split[(n,)](  # type: ignore[index]
            values.contiguous(), parts, units, width, depth, WIDTH=triton.next_power_of_2(depth)
        )
    return parts, units


def nearest(x: Tensor, parts: Tensor, units: Tensor, half_norms: Tensor) -> Tensor:
    """What `craft.quantize.search.nearest_codes` gives; ties to the lowest index.

    Args:
        x: float32 `[n, d]`.
        parts: float16 `[K, 2 D]`, of the codewords, by `split`.
        units: float32 `[K]`, of the codewords, by `split`.
        half_norms: float32 `[K]`, `|c|²/2`.

    Returns:
        int64 `[n]`.

    Source: Eq. 1; the kernels are ours, after FlashAttention's running maximum. Sums of two float16 for one
    float32: Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores", 2022.
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
    return codes.gather(1, scores.argmax(1, keepdim=True))[:, 0].long()  # the first, that is the lowest index


@cache
def _plan(n: int, size: int, device: torch.device) -> tuple[int, int]:
    """How many codewords one program takes, so that few rows, too, keep all processors busy; and stages."""
    blocks, tiles = triton.cdiv(n, _ROWS), triton.cdiv(size, _CODES)
    if device.type != "cuda":  # the interpreter
        return triton.cdiv(tiles, 3) * _CODES, 1
    told = torch.cuda.get_device_properties(device)

    def cost(taken: int) -> float:  # in blocks; a program takes about a tenth of one to start and to end
        waves = triton.cdiv(blocks * triton.cdiv(tiles, taken), told.multi_processor_count)
        return waves * (taken + 0.1)

    stages = told.shared_memory_per_block_optin // (2 * (_ROWS + _CODES) * _DEPTH)
    return min(range(tiles, 0, -1), key=cost) * _CODES, min(stages, _STAGES)
