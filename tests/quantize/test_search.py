"""Every search against float64: the same codes, but where two codewords are as near as float32 can tell."""

import copy
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from craft.core.errors import ConfigError
from craft.quantize import ResidualCodebook, search
from craft.quantize.search import SEARCHES, Choice, choose, kept_bytes
from craft.training.config import Search
from paper.bench.search import near_ties


def features(kind: str, codebook: ResidualCodebook, count: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(count, codebook.dim, generator=g)
    if kind == "gaussian":
        return noise
    if kind == "outlier channels":  # like the stream between the layers of a ViT
        return noise * (1 + 50 * (torch.arange(codebook.dim) % 17 == 0))
    picked = [table[torch.randint(codebook.size, (count,), generator=g)] for table in codebook.levels]
    return 0.3 * noise + torch.stack(picked).sum(0)


def codebook(shared: bool, size: int = 1500, dim: int = 48) -> ResidualCodebook:
    g = torch.Generator().manual_seed(0)
    if shared:
        return ResidualCodebook([torch.randn(size, dim, generator=g)] * 4)
    return ResidualCodebook(torch.randn(4, size, dim, generator=g) * 0.5 ** torch.arange(4)[:, None, None])


def unexplained(z: Tensor, codes: Tensor, book: ResidualCodebook) -> tuple[int, int]:
    return near_ties(z, book.levels, codes)


@pytest.mark.parametrize("kind", ["gaussian", "outlier channels", "sums of codewords"])
@pytest.mark.parametrize("shared", [True, False])
def test_codes_are_those_of_float64_but_for_near_ties(shared, kind):
    book = codebook(shared)
    z = features(kind, book, 700)
    result = book.quantize(z)
    ties, wrong = unexplained(z, result.codes, book)
    assert wrong == 0
    assert ties <= 2
    assert torch.equal(result.quantized, book.lookup(result.codes))


def test_the_counting_of_near_ties_would_notice_wrong_codes():
    book = codebook(True)
    z = features("gaussian", book, 100)
    codes = book.quantize(z).codes
    codes[3, 2] = (codes[3, 2] + 1) % book.size
    assert unexplained(z, codes, book) == (1, 1)


@pytest.mark.parametrize("count", [0, 1, 257])
def test_any_number_of_rows_and_sizes_that_blocks_do_not_divide(count):
    book = codebook(True, size=1030, dim=7)
    z = features("gaussian", book, count).reshape(count, 7)
    result = book.quantize(z)
    assert result.codes.shape == (count, 4)
    assert unexplained(z, result.codes, book) == (0, 0)


def test_ties_go_to_the_lowest_index():
    table = torch.randn(1100, 6, generator=torch.Generator().manual_seed(0))
    table[[5, 700, 1090]] = 2.0  # one codeword in three places
    result = ResidualCodebook([table] * 2).quantize(torch.full((4, 6), 2.0))
    assert result.codes[:, 0].tolist() == [5] * 4


def test_the_setting_offers_every_search():
    assert set(get_args(Search)) == {*SEARCHES, "auto"}


def test_auto_says_what_it_takes_and_why(monkeypatch):
    shared, apart = codebook(True), codebook(False)
    assert choose(shared) == Choice("exact", "cpu, K=1500, d=48, one table for all levels")
    assert choose(apart) == Choice("exact", "cpu, K=1500, d=48, 4 tables")
    z = features("gaussian", apart, 40)
    assert torch.equal(apart.quantize(z, search="auto").codes, apart.quantize(z).codes)
    levels = SimpleNamespace(shape=(4, 1500, 48), device=torch.device("cuda"))
    on_a_gpu: Any = SimpleNamespace(levels=levels, shared=True, half_norms=None, derived=max)
    monkeypatch.setattr(search, "_installed", lambda name: True)
    assert choose(on_a_gpu).name == "fused" and "cuda, K=1500" in choose(on_a_gpu).why
    monkeypatch.setattr(search, "_installed", lambda name: False)
    assert choose(on_a_gpu).name == "exact" and "fused needs Triton" in choose(on_a_gpu).why


@pytest.mark.parametrize("shared", [True, False])
def test_what_the_fused_search_keeps_is_counted(shared):
    tables, (size, dim) = 1 if shared else 4, codebook(shared).levels.shape[1:]
    filled = -(-dim // 64) * 64  # what `of_levels` derives: parts, units, half norms, middles
    parts = torch.empty(tables, size, 2 * filled, dtype=torch.float16)
    rest = [torch.empty(tables, size), torch.empty(tables, size), torch.empty(tables, dim)]
    assert kept_bytes("fused", codebook(shared)) == parts.nbytes + sum(one.nbytes for one in rest)


def test_what_does_not_fit_is_refused():
    book, z = codebook(True), torch.zeros(3, 48)
    with pytest.raises(ConfigError, match="search 'fast' is unknown; use auto, exact, fused"):
        book.quantize(z, search="fast")
    with pytest.raises(ConfigError, match="kernel for CUDA"):
        book.quantize(z, search="fused")


def test_what_is_derived_from_codewords_follows_them_and_is_not_copied():
    book = codebook(True)
    z = features("gaussian", book, 50)
    book.quantize(z)
    twin = copy.deepcopy(book)
    assert book._derived and not twin._derived
    book.codewords[:, ::2] *= 3  # their norms change
    assert torch.equal(book.quantize(z).codes, ResidualCodebook([book.codewords[0]] * 4).quantize(z).codes)


KERNEL = """
from types import SimpleNamespace
import torch
from craft.quantize import ResidualCodebook, triton_search
from craft.quantize.search import DEPTH, kept_bytes

triton_search._ROWS, triton_search._CODES, triton_search._DEPTH = 16, 32, 16  # small, to need several


def nearest(x, table):
    return triton_search.of_levels(ResidualCodebook([table]))(x, 0)


g = torch.Generator().manual_seed(0)
sizes = [(37, 110, 40), (16, 32, 16), (1, 5, 3), (0, 9, 4), (3, 1, 1), (18, 65, 17)]
cases = [(*size, 1.0, 0.0) for size in sizes]
cases += [(20, 70, 24, 1.0, 300.0), (20, 70, 24, 1e12, 0.0), (20, 70, 24, 1e-12, 0.0)]
for n, size, dim, scale, offset in cases:  # none of the sizes a multiple of the blocks; all of them; tiny
    x = torch.randn(n, dim, generator=g) * scale + offset
    table = torch.randn(size, dim, generator=g) * scale + offset
    wanted = torch.cdist(x.double(), table.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(nearest(x, table), wanted.argmin(1)), (n, size, dim, scale, offset)
values = torch.randn(5, 20, generator=g) * 10.0 ** torch.arange(-30, 31, 15)[:, None]
parts, units = triton_search.split(values)
large, small = parts.double().unflatten(1, (2, -1)).unbind(1)
gap = ((large + small) * units[:, None])[:, :20] - values.double()
assert parts.shape == (5, 64) and (gap.abs() <= values.abs().amax(1, keepdim=True) * 2**-22).all()
table = torch.randn(110, 6, generator=g)
table[[7, 50, 109]] = 2.0  # one codeword in three places
for shares in (1, 2, 4):  # ties go to the lowest index, also between programs
    triton_search._plan = lambda n, size, device: (32 * (4 // shares), 1)
    assert nearest(torch.full((4, 6), 2.0), table).tolist() == [7] * 4, shares
assert nearest(torch.full((2, 3), torch.nan), torch.randn(9, 3, generator=g)).tolist() == [0, 0]
triton_search._DEPTH = DEPTH
book = ResidualCodebook(torch.randn(2, 30, 70, generator=g))
triton_search.of_levels(book)
assert kept_bytes("fused", book) == sum(made.nbytes for _, made in book._derived.values())
"""


PLAN = """
from types import SimpleNamespace
import torch
from craft.quantize.triton_search import _plan
h100 = SimpleNamespace(multi_processor_count=132, shared_memory_per_block_optin=232448)
torch.cuda.get_device_properties = lambda device: h100
for n, share in ((256, 256), (1024, 1024), (8192, 8192), (65536, 16384)):  # 128, 128, 128, 512 programs
    assert _plan(n, 16384, torch.device("cuda")) == (share, 4), (n, _plan(n, 16384, torch.device("cuda")))
assert _plan(8, 5, torch.device("cuda")) == (256, 4)
"""


@pytest.mark.parametrize("script", [KERNEL, PLAN], ids=["kernel", "plan"])
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_in_tritons_interpreter(script):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", ["gaussian", "outlier channels", "sums of codewords"])
@pytest.mark.parametrize("name", list(SEARCHES))
def test_searches_on_cuda(name, kind, shared):
    z, book = features(kind, codebook(shared), 700).cuda(), codebook(shared).to("cuda")
    result = book.quantize(z, search=name)
    assert unexplained(z, result.codes, book)[1] == 0
