"""Searches for the nearest codewords, level by level (Eq. 1, §9): one function each, all with float32 scores.

codes = SEARCHES["exact"](x, codebook)   # float32 [n, d] -> int64 [n, L]
choose(codebook).name                    # what `auto` takes here, and .why
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from craft.core.device import exact_products
from craft.core.errors import ConfigError
from craft.quantize.tables import DEPTH, Tables

ROW_BLOCK = 4096
CODE_BLOCK = 1024
Search = Literal["auto", "exact", "fused"]
"""What the setting `search` takes: a key of `SEARCHES`, or the one that `choose` picks."""


@contextmanager
def exact_matmul(device: torch.device) -> Iterator[None]:
    """Switch autocast and TF32 off: both flip near-ties between codewords (source: ours, measured)."""
    if device.type == "meta":  # shapes only: there is nothing to round
        yield
        return
    with torch.autocast(device.type, enabled=False), exact_products(device):
        yield


def code_block(rows: int, size: int, device: torch.device) -> int:
    """How many of `size` codewords are scored at once against so many rows.

    On a processor a block that its cache holds. Elsewhere every block costs the time of its launches: for few
    rows it is wider, up to a quarter of the codewords, within the same `ROW_BLOCK` x `CODE_BLOCK` scores.
    """
    if device.type == "cpu":
        return CODE_BLOCK
    return max(CODE_BLOCK, min(ROW_BLOCK * CODE_BLOCK // max(rows, 1), size // 4))


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
    return torch.cat([_nearest_rows(block, codewords, half_norms) for block in x.split(ROW_BLOCK)])


def _nearest_rows(x: Tensor, codewords: Tensor, half_norms: Tensor) -> Tensor:
    size = codewords.shape[0]
    width = code_block(len(x), size, x.device)
    scores = x.new_empty(x.shape[0], min(width, size))  # the one temporary, used again for every block
    best = x.new_full((x.shape[0],), float("-inf"))
    index = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    for start in range(0, size, width):
        table = codewords[start : start + width]
        block = scores[:, : table.shape[0]]
        torch.mm(x, table.T, out=block)
        block -= half_norms[start : start + width]
        score, arg = block.max(dim=1)  # the first maximum, that is the lowest index
        better = score > best  # strict: an equal score keeps the lower index
        best = torch.where(better, score, best)
        index = torch.where(better, arg + start, index)
    return index


def exact(x: Tensor, tables: Tables) -> Tensor:
    """The default: `nearest_codes` at each level, no approximation, at most 16 MiB of scores.

    Args:
        x: float32 `[n, d]`.
        tables: the codebook.

    Returns:
        int64 `[n, L]`.

    Source: Eq. 1 and §9.
    """
    levels, norms = tables.levels, tables.half_norms
    return _by_level(x, tables, lambda rest, level: nearest_codes(rest, levels[level], norms[level]))


def fused(x: Tensor, tables: Tables) -> Tensor:
    """Products on tensor cores, in sums of float16 that keep 22 of 24 bits; in Triton, for CUDA.

    No scores in memory. Takes the codebook's memory once more, for its codewords in float16.

    Args:
        x: float32 `[n, d]` on a CUDA device.
        tables: the codebook.

    Returns:
        int64 `[n, L]`; other codes than `exact` only where codewords are as near as float32 can tell.

    Raises:
        ConfigError: there is no CUDA device, or Triton is not installed.

    Source: ours.
    """
    check_search("fused", tables)
    from craft.quantize.triton_search import of_levels

    return _by_level(x, tables, of_levels(tables))


SEARCHES: dict[str, Callable[[Tensor, Tables], Tensor]] = {
    "exact": exact,
    "fused": fused,
}
"""The searches by name, but for "auto"."""


def kept_bytes(name: str, tables: Tables) -> int:
    """Bytes that a search keeps in addition to the codebook, from its first use on."""
    if name != "fused":
        return 0
    count, size, width = tables.levels.shape
    stored = 1 if tables.shared else count
    parts = 4 * -(-width // DEPTH) * DEPTH + 4 + 4  # of a codeword: two float16 a value, its unit and norm
    return stored * (size * parts + width * 4)


@dataclass(frozen=True)
class Choice:
    """A search: its `name` in `SEARCHES`, and `why` it was taken."""

    name: str
    why: str


def choose(tables: Tables) -> Choice:
    """What `auto` takes for a codebook on its current device: `fused` if it can run, else `exact`."""
    count, size, width = tables.levels.shape
    device = tables.levels.device
    levels = "one table for all levels" if tables.shared else f"{count} tables"
    sizes = f"{device.type}, K={size}, d={width}, {levels}"
    if device.type != "cuda":
        return Choice("exact", sizes)
    if fault := obstacle("fused", tables):
        return Choice("exact", f"{sizes}; fused {fault}")
    return Choice("fused", f"{sizes}: tensor cores, no scores in memory")


def obstacle(name: str, tables: Tables) -> str | None:
    """Why a search cannot run on this codebook on its current device; None if it can."""
    device = tables.levels.device
    if name == "fused" and device.type != "cuda":
        return f"is a kernel for CUDA, and this runs on {device.type}"
    if name == "fused" and not _installed("triton"):
        return "needs Triton (pip install triton)"
    return None


def check_search(name: str, tables: Tables) -> None:
    """Refuse a search that cannot run.

    Raises:
        ConfigError: as `obstacle` says.
    """
    if fault := obstacle(name, tables):
        raise ConfigError(f"search={name} {fault}; use search=exact, or auto.")


def search_for(name: str, tables: Tables) -> Choice:
    """The search that the setting `search` means for a codebook, checked; "auto" is `choose`'s.

    Raises:
        ConfigError: there is none of that name, or it cannot run here.
    """
    if name == "auto":
        return choose(tables)
    search_named(name, tables)
    check_search(name, tables)
    return Choice(name, "as set")


def search_named(name: str, tables: Tables) -> Callable[[Tensor, Tables], Tensor]:
    """The search called `name`, or the one that `auto` takes.

    Raises:
        ConfigError: there is none of that name.
    """
    name = choose(tables).name if name == "auto" else name
    if name not in SEARCHES:
        raise ConfigError(f"There is no search {name!r}; use auto, {', '.join(SEARCHES)}.")
    return SEARCHES[name]


def _by_level(x: Tensor, tables: Tables, nearest: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Level by level: the codeword nearest to what is left, which is then taken off (§9)."""
    rest, codes = x.clone(), []
    for level in range(tables.levels.shape[0]):
        if level:
            rest -= tables.levels[level - 1][codes[-1]]
        codes.append(nearest(rest, level))
    return torch.stack(codes, dim=1)


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
