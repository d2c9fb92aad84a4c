"""Searches for the nearest codewords, level by level (Eq. 1, §9), all with the accuracy of float32.

codes = SEARCHES["exact"](x, codebook)   # float32 [n, d] -> int64 [n, L]
choose(codebook).name                    # the search that "auto" selects; .why has the reason
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from craft.core.device import exact_products
from craft.core.errors import ConfigError
from craft.quantize.tables import DEPTH, Tables

ROW_BLOCK = 4096
CODE_BLOCK = 1024


@contextmanager
def exact_matmul(device: torch.device) -> Iterator[None]:
    """Switch off autocast and TF32, which change the order of almost equally near codewords (measured)."""
    if device.type == "meta":  # shapes without values: nothing is rounded
        yield
        return
    with torch.autocast(device.type, enabled=False), exact_products(device):
        yield


def code_block(rows: int, size: int, device: torch.device) -> int:
    """Number of codewords, out of `size`, that are scored at once for `rows` rows.

    On a CPU it is a block that fits its cache. On other devices every block has launch overhead, so the block
    is wider for few rows: up to a quarter of the codewords, within `ROW_BLOCK` x `CODE_BLOCK` scores.
    """
    if device.type == "cpu":
        return CODE_BLOCK
    return max(CODE_BLOCK, min(ROW_BLOCK * CODE_BLOCK // max(rows, 1), size // 4))


def nearest_codes(x: Tensor, codewords: Tensor, half_norms: Tensor) -> Tensor:
    """Index of the codeword nearest to each row in squared Euclidean distance.

    `argmin |x - c|²` equals `argmax (x·c - |c|²/2)`, because `|x|²` is the same for every codeword; a sum
    with it would also round away digits. A running maximum over blocks of codewords needs at most
    `[ROW_BLOCK, CODE_BLOCK]` scores in memory, never `[n, K]`. Of equally near codewords the lowest index
    wins.

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
    scores = x.new_empty(x.shape[0], min(width, size))  # the only temporary, reused for every block
    best = x.new_full((x.shape[0],), float("-inf"))
    index = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    for start in range(0, size, width):
        table = codewords[start : start + width]
        block = scores[:, : table.shape[0]]
        torch.mm(x, table.T, out=block)
        block -= half_norms[start : start + width]
        score, arg = block.max(dim=1)  # the first maximum, so the lowest index
        better = score > best  # strict: an equal score keeps the lower index
        best = torch.where(better, score, best)
        index = torch.where(better, arg + start, index)
    return index


def exact(x: Tensor, tables: Tables) -> Tensor:
    """The default: `nearest_codes` at each level, without approximation, with at most 16 MiB of scores.

    Args:
        x: float32 `[n, d]`.

    Returns:
        int64 `[n, L]`.

    Source: Eq. 1 and §9.
    """
    levels, norms = tables.levels, tables.half_norms
    return _by_level(x, tables, lambda residual, level: nearest_codes(residual, levels[level], norms[level]))


def fused(x: Tensor, tables: Tables) -> Tensor:
    """Products on tensor cores, as sums of float16 that keep 22 of 24 bits; a Triton kernel for CUDA.

    It stores no scores, but needs the codebook's memory once more, for its codewords in float16.

    Args:
        x: float32 `[n, d]` on a CUDA device.

    Returns:
        int64 `[n, L]`; these differ from `exact` only between codewords that are equally near in float32.

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
"""The searches by name, without "auto"."""


def kept_bytes(name: str, tables: Tables) -> int:
    """Bytes that a search stores in addition to the codebook, from its first use on."""
    if name != "fused":
        return 0
    count, size, width = tables.levels.shape
    stored = 1 if tables.shared else count
    parts = 4 * -(-width // DEPTH) * DEPTH + 4 + 4  # per codeword: two float16 per value, its unit and norm
    return stored * (size * parts + width * 4)


@dataclass(frozen=True)
class Choice:
    """A search: its `name` in `SEARCHES`, and `why` it was selected."""

    name: str
    why: str


def choose(tables: Tables) -> Choice:
    """The search that "auto" selects for a codebook on its device: `fused` if it can run, else `exact`."""
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
    """Why a search cannot run for this codebook on its device; None if it can."""
    device = tables.levels.device
    if name == "fused" and device.type != "cuda":
        return f"is a kernel for CUDA, and this runs on {device.type}"
    if name == "fused" and not _installed("triton"):
        return "needs Triton (pip install triton)"
    return None


def check_search(name: str, tables: Tables) -> None:
    """Check that a search can run.

    Raises:
        ConfigError: it cannot; the message has the reason from `obstacle`.
    """
    if fault := obstacle(name, tables):
        raise ConfigError(f"search={name} {fault}; use search=exact, or auto.")


def search_for(name: str, tables: Tables) -> Choice:
    """The search for a value of the setting `search`, checked; "auto" selects by `choose`.

    Raises:
        ConfigError: the search is unknown, or it cannot run here.
    """
    if name == "auto":
        return choose(tables)
    search_named(name, tables)
    check_search(name, tables)
    return Choice(name, "as set")


def search_named(name: str, tables: Tables) -> Callable[[Tensor, Tables], Tensor]:
    """The search called `name`, or the one that "auto" selects.

    Raises:
        ConfigError: the search is unknown.
    """
    name = choose(tables).name if name == "auto" else name
    if name not in SEARCHES:
        raise ConfigError(f"The search {name!r} is unknown; use auto, {', '.join(SEARCHES)}.")
    return SEARCHES[name]


def _by_level(x: Tensor, tables: Tables, nearest: Callable[[Tensor, int], Tensor]) -> Tensor:
    """At each level, find the codeword nearest to the residual and subtract it (§9)."""
    residual, codes = x.clone(), []
    for level in range(tables.levels.shape[0]):
        if level:
            residual -= tables.levels[level - 1][codes[-1]]
        codes.append(nearest(residual, level))
    return torch.stack(codes, dim=1)


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
