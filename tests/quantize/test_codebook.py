"""The frozen codebook against a slow float64 reference, and everything that must never change it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from craft.core.errors import CheckpointError
from craft.quantize import ResidualCodebook, code_counts, straight_through, usage
from craft.quantize.search import CODE_BLOCK, ROW_BLOCK, code_block, nearest_codes
from paper.bench.measure import peak_bytes


def reference(z: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and sums by direct differences in float64 (Eq. 1 and §9, as written)."""
    rest, codes = z.double(), []
    for level in levels.double():
        index = (rest[:, None] - level[None]).square().sum(-1).argmin(1)
        rest = rest - level[index]
        codes.append(index)
    return torch.stack(codes, -1), z.double() - rest


def book(levels: int = 4, size: int = 37, dim: int = 9, seed: int = 0) -> ResidualCodebook:
    g = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0, 0.6, 0.4, 0.3])[:levels, None, None]
    return ResidualCodebook(torch.randn(levels, size, dim, generator=g) * scale)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 70), st.integers(1, 12))
def test_codes_equal_the_slow_reference(seed: int, levels: int, size: int, dim: int) -> None:
    codebook = book(levels, size, dim, seed)
    z = torch.randn(23, dim, generator=torch.Generator().manual_seed(seed + 1))
    result = codebook.quantize(z)
    codes, sums = reference(z, codebook.levels)
    assert torch.equal(result.codes, codes)
    torch.testing.assert_close(result.quantized.double(), sums, atol=1e-5, rtol=0)
    assert torch.equal(result.quantized, codebook.lookup(result.codes))
    first = (z - codebook.levels[0][codes[:, 0]]).square().sum(-1)
    torch.testing.assert_close(result.residual, first)


def test_blocks_of_codewords_do_not_change_the_result() -> None:
    codebook = book(2, 2 * CODE_BLOCK + 317, 5)
    z = torch.randn(50, 5)
    codes, _ = reference(z, codebook.levels)
    assert torch.equal(codebook.quantize(z).codes, codes)
    assert codes.max() >= CODE_BLOCK  # the data does reach past the first block


@given(st.integers(1, ROW_BLOCK), st.integers(1, 10**5))
def test_no_block_is_a_matrix_of_all_scores(rows: int, size: int) -> None:
    width = code_block(rows, size, torch.device("cuda"))
    assert CODE_BLOCK <= width <= max(CODE_BLOCK, size // 4) and rows * width <= ROW_BLOCK * CODE_BLOCK
    assert code_block(rows, size, torch.device("cpu")) == CODE_BLOCK


def test_few_copies_of_the_features_are_held_at_once() -> None:
    """Where codewords are few, those are all the memory: three, and a bit for codes and scores."""
    codebook = book(2, 16, 64)
    z = torch.randn(4096, 64)
    codebook.quantize(z)
    assert peak_bytes(lambda: codebook.quantize(z), torch.device("cpu")) < 3.5 * z.nbytes


@pytest.mark.parametrize("width", [7, 64, 10**6])
def test_the_width_of_a_block_does_not_change_the_result(width: int, monkeypatch) -> None:
    codebook = book(2, 300, 5)
    z = torch.randn(50, 5)
    monkeypatch.setattr("craft.quantize.search.code_block", lambda *_: width)
    assert torch.equal(codebook.quantize(z).codes, reference(z, codebook.levels)[0])


def test_ties_go_to_the_lowest_index_within_and_across_blocks() -> None:
    table = torch.zeros(CODE_BLOCK + 8, 3)
    table[5:] = 1.0  # 5, 6, ... and the whole second block are one and the same codeword
    half_norms = table.square().sum(-1) / 2
    assert nearest_codes(torch.ones(4, 3), table, half_norms).tolist() == [5] * 4
    assert nearest_codes(torch.zeros(4, 3), table, half_norms).tolist() == [0] * 4


def test_leading_dimensions_and_batch_mates_do_not_matter() -> None:
    codebook = book()
    z = torch.randn(3, 7, 9)
    whole = codebook.quantize(z, partial_sums=True)
    assert whole.codes.shape == (3, 7, 4) and whole.residual.shape == (3, 7)
    assert whole.partial_sums is not None and whole.partial_sums.shape == (3, 7, 4, 9)
    assert torch.equal(whole.partial_sums[..., -1, :], whole.quantized)
    for row in range(3):
        assert torch.equal(codebook.quantize(z[row : row + 1]).codes[0], whole.codes[row])


def test_a_shared_table_is_stored_once_and_is_the_same_codebook() -> None:
    table = torch.randn(11, 4)
    shared, copied = ResidualCodebook([table] * 3), ResidualCodebook([table.clone() for _ in range(3)])
    assert shared.shared and not copied.shared
    assert shared.codewords.shape == (1, 11, 4) and shared.levels.shape == copied.levels.shape == (3, 11, 4)
    assert shared.fingerprint == copied.fingerprint
    z = torch.randn(20, 4)
    assert torch.equal(shared.quantize(z).codes, copied.quantize(z).codes)


def test_the_fingerprint_depends_on_values_and_shape() -> None:
    codebook = book()
    moved = codebook.levels.clone()
    moved[3, 36, 8] = torch.nextafter(moved[3, 36, 8], torch.tensor(9.0))
    assert ResidualCodebook(moved).fingerprint != codebook.fingerprint
    flat = torch.randn(2, 6, 4)
    assert ResidualCodebook(flat).fingerprint != ResidualCodebook(flat.reshape(2, 4, 6)).fingerprint
    before = codebook.fingerprint
    codebook.codewords[0, 0, 0] += 1  # the cached value must not outlive a change
    assert codebook.fingerprint != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_no_dtype_change_reaches_the_codewords(dtype: torch.dtype) -> None:
    codebook, z = book(), torch.randn(31, 9)
    before, codes = codebook.codewords.clone(), codebook.quantize(z).codes
    model = torch.nn.Sequential(codebook).to(dtype)
    assert torch.equal(codebook.codewords, before) and codebook.codewords.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codebook.quantize(z).codes, codes)
    assert model is not None


def test_training_mode_changes_nothing() -> None:
    codebook = book().train()
    assert list(codebook.parameters()) == []
    before = codebook.codewords.clone()
    for _ in range(3):
        codebook.quantize(torch.randn(64, 9, requires_grad=True))
    assert torch.equal(codebook.codewords, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_straight_through_is_exact_forward_and_identity_backward(dtype: torch.dtype) -> None:
    codebook = book()
    features = (torch.randn(40, 9) * 3).to(dtype).requires_grad_()
    quantized = codebook.quantize(features).quantized
    out = straight_through(features, quantized)
    assert torch.equal(out, quantized)
    weight = torch.randn(40, 9)
    (out * weight).sum().backward()
    assert features.grad is not None and torch.equal(features.grad, weight.to(dtype))


def test_the_input_is_not_written_to() -> None:
    z = torch.randn(12, 9)
    copy = z.clone()
    book().quantize(z)
    assert torch.equal(z, copy)


def test_it_can_be_made_and_used_in_inference_mode() -> None:
    z, made = torch.randn(12, 9), book()
    with torch.inference_mode():
        again = book()
        assert torch.equal(again.quantize(z).codes, made.quantize(z).codes)
    assert torch.equal(again.quantize(z).codes, made.quantize(z).codes)
    assert again.fingerprint == made.fingerprint


def test_errors_name_the_cause() -> None:
    with pytest.raises(CheckpointError, match=r"width 5 .* width 9"):
        book().quantize(torch.randn(2, 5))
    with pytest.raises(CheckpointError, match="one shape"):
        ResidualCodebook([torch.zeros(3, 2), torch.zeros(4, 2)])
    with pytest.raises(CheckpointError, match="not finite"):
        ResidualCodebook(torch.full((1, 2, 2), float("nan")))


def test_counts_and_usage() -> None:
    codes = torch.tensor([[[0, 1], [0, 2]], [[3, 2], [0, 2]]])
    assert code_counts(codes, 5).tolist() == [3, 0, 0, 1, 0]
    rows = usage(codes, 4)
    assert rows[0]["used"] == rows[1]["used"] == 0.5
    assert 1.0 < rows[0]["perplexity"] < 2.0
