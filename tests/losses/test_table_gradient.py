"""Rules that replace the gradient of a token table, against their definitions."""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from craft.losses.table_gradient import (
    Soft,
    affine,
    affine_fit,
    identity,
    median_gap,
    soft_gain,
    through_table,
)

LEVELS, SIZE, DIM, WIDTH, TOKENS = 3, 12, 5, 7, 9


@pytest.fixture
def parts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "levels": normal(LEVELS, SIZE, DIM),
        "tables": normal(LEVELS, SIZE, WIDTH),
        "z": normal(TOKENS, DIM),
        "g": normal(TOKENS, WIDTH),
        "codes": torch.randint(SIZE, (TOKENS, LEVELS), generator=generator),
    }


def test_the_forward_pass_is_exactly_the_row(parts: dict[str, Tensor]) -> None:
    rows = parts["tables"][0][parts["codes"][:, 0]].to(torch.bfloat16)
    z = parts["z"].clone().requires_grad_()
    read = through_table(z, parts["codes"], rows, affine(torch.ones(DIM, WIDTH)))
    assert read.dtype == torch.bfloat16 and torch.equal(read, rows)
    read.sum().backward()
    assert z.grad is not None and torch.equal(z.grad, torch.full_like(z, WIDTH))


def test_identity_passes_the_gradient_unchanged(parts: dict[str, Tensor]) -> None:
    z = parts["z"].clone().requires_grad_()
    weights = parts["g"][:, :DIM].float()
    (through_table(z, parts["codes"], torch.zeros(TOKENS, DIM), identity) * weights).sum().backward()
    assert z.grad is not None and torch.equal(z.grad, weights.double())


def test_the_affine_fit_of_an_affine_table_is_its_slope(parts: dict[str, Tensor]) -> None:
    slope = torch.randn(DIM, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    table = parts["levels"][0] @ slope + 3
    fitted, share = affine_fit(parts["levels"][0], table)
    torch.testing.assert_close(fitted.double(), slope, rtol=1e-6, atol=1e-6)
    assert share == pytest.approx(1)
    noisy, share = affine_fit(parts["levels"][0], parts["tables"][0])
    whole = torch.cat([parts["levels"][0], torch.ones(SIZE, 1, dtype=torch.float64)], dim=1)
    reference = torch.linalg.lstsq(whole, parts["tables"][0])
    torch.testing.assert_close(noisy.double(), reference.solution[:DIM], rtol=1e-6, atol=1e-6)
    left = (parts["tables"][0] - whole @ reference.solution).square().sum()
    spread = (parts["tables"][0] - parts["tables"][0].mean(0)).square().sum()
    assert share == pytest.approx(float(1 - left / spread))


def mean_row(parts: dict[str, Tensor], z: Tensor, level: int, temperature: float, top_k: int) -> Tensor:
    """Σ_j p_j T_j over the nearest codes of one level, as the definition has it."""
    for earlier in range(level):
        z = z - parts["levels"][earlier][parts["codes"][:, earlier]]
    distances = (z[:, None] - parts["levels"][level]).square().sum(-1)
    far = distances.argsort(dim=1).argsort(dim=1) >= top_k
    return (-distances / temperature).masked_fill(far, -torch.inf).softmax(1) @ parts["tables"][level]


@pytest.mark.parametrize("top_k", [None, 1, 4, SIZE])
@pytest.mark.parametrize("block", [1, 10**6])
def test_soft_is_the_derivative_of_the_mean_row(
    parts: dict[str, Tensor], block: int, top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft.losses.table_gradient.SCORES", block)
    temperatures, gains = [2.0, 3.0, 5.0], [0.5, 2.0, 4.0]
    rule = Soft(parts["levels"], parts["tables"], temperatures, gains, top_k)
    gradient = rule(parts["z"], parts["codes"], parts["g"])
    if top_k == SIZE:
        whole = replace(rule, top_k=None)(parts["z"], parts["codes"], parts["g"])
        torch.testing.assert_close(gradient, whole, rtol=1e-12, atol=1e-12)
    step = 1e-6
    for column in range(DIM):
        shift = torch.zeros(DIM, dtype=torch.float64)
        shift[column] = step
        change = torch.zeros(TOKENS, dtype=torch.float64)
        for level in range(LEVELS):
            up, down = (
                mean_row(parts, parts["z"] + sign * shift, level, temperatures[level], top_k or SIZE)
                for sign in (1, -1)
            )
            change += (parts["g"] * (up - down)).sum(1) / (2 * step) / gains[level] / LEVELS
        torch.testing.assert_close(gradient[:, column], change, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("top_k", [None, 4])
def test_the_gain_is_the_mean_slope_of_the_soft_codeword(parts: dict[str, Tensor], top_k: int | None) -> None:
    codewords = parts["levels"][0]

    def codeword(z: Tensor) -> Tensor:
        near = (z - codewords).square().sum(-1).argsort()[:top_k]
        return (-(z - codewords[near]).square().sum(-1) / 2.0).softmax(0) @ codewords[near]

    traces = [torch.autograd.functional.jacobian(codeword, z).trace() / DIM for z in parts["z"]]
    assert soft_gain(parts["z"], codewords, 2.0, top_k) == pytest.approx(float(torch.stack(traces).mean()))


def test_the_median_gap(parts: dict[str, Tensor]) -> None:
    near = (parts["z"][:, None] - parts["levels"][0]).square().sum(-1).sort(dim=1).values
    expected = (near[:, 1] - near[:, 0]).median()
    assert median_gap(parts["z"], parts["levels"][0]) == pytest.approx(float(expected))


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes of tensors that exist at once in addition to those before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as record:
        kept = run()
    del kept
    results: Any = record.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    assert events
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("top_k", [None, 4, 512])
@pytest.mark.parametrize("tokens", [40, 400], ids=["one block", "blocks"])
def test_the_bytes_that_soft_holds_are_its_peak(
    tokens: int, top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft.losses.table_gradient.SCORES", 2**20)
    size, dim, width = 8192, 16, 48
    levels, z = torch.randn(1, size, dim), torch.randn(tokens, dim)
    rule = Soft(levels, torch.randn(1, size, width), [1.0], top_k=top_k)
    codes, g = torch.zeros(tokens, 1, dtype=torch.long), torch.randn(tokens, width)
    rows = rule.tables.nbytes
    assert rows + peak_bytes(lambda: rule(z, codes, g)) == pytest.approx(rule.held_bytes(tokens), rel=0.05)
    if top_k is None:
        assert rule.held_bytes(tokens) - rows == 3 * min(tokens, 128) * size * 4
