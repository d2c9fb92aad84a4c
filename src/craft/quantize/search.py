"""Nearest-codeword search, exact in float32 and blocked over codewords (Eq. 1)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

ROW_BLOCK = 4096
CODE_BLOCK = 1024


@contextmanager
def exact_matmul(device: torch.device) -> Iterator[None]:
    """Switch autocast and TF32 off: both flip near-ties between codewords (source: ours, measured)."""
    if device.type == "meta":  # shapes only: there is nothing to round
        yield
        return
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda" or not torch.backends.cuda.matmul.allow_tf32:
            yield
            return
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = True


def nearest_codes(x: Tensor, codewords: Tensor, half_norms: Tensor) -> Tensor:
    """Index of the codeword nearest to each row in squared Euclidean distance.

    `argmin |x - c|²` equals `argmax (x·c - |c|²/2)`: `|x|²` is the same for every codeword, and leaving it
    out also keeps the digits that a sum with it would round away. A running maximum over blocks of codewords
    holds at most `[ROW_BLOCK, CODE_BLOCK]` scores, never `[n, K]`. Ties go to the lowest index.

    Args:
        x: float32 `[n, d]`.
        codewords: float32 `[K, d]`.
        half_norms: float32 `[K]`, `|c|²/2`.

    Returns:
        int64 `[n]`.

    Source: Eq. 1; the formulation is ours.
    """
    rows = [_nearest_rows(block, codewords, half_norms) for block in x.split(ROW_BLOCK)]
    return torch.cat(rows) if rows else x.new_zeros(0, dtype=torch.int64)


def _nearest_rows(x: Tensor, codewords: Tensor, half_norms: Tensor) -> Tensor:
    size = codewords.shape[0]
    scores = x.new_empty(x.shape[0], min(CODE_BLOCK, size))  # the one temporary, used again for every block
    best = x.new_full((x.shape[0],), float("-inf"))
    index = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    for start in range(0, size, CODE_BLOCK):
        table = codewords[start : start + CODE_BLOCK]
        block = scores[:, : table.shape[0]]
        torch.mm(x, table.T, out=block)
        block -= half_norms[start : start + CODE_BLOCK]
        score, arg = block.max(dim=1)  # the first maximum, that is the lowest index
        better = score > best  # strict: an equal score keeps the lower index
        best = torch.where(better, score, best)
        index = torch.where(better, arg + start, index)
    return index
