"""The closed form against the definition with a search over γ, on many random grids."""

import random

import pytest
import torch

from craft.core.tokens import VisionTokens
from craft.pruning import PruningSettings, prune_tokens
from craft.pruning.quota import keep_until, rank_in_code, rarity_log_ratio
from pruning import oracle

SIDES = ((4, 4), (3, 7), (6, 6))


def grids(number, rows, columns, size, seed):
    """Tokens of `number` random grids: blobs and noise of Zipf codes, residuals with some ties."""
    draw = torch.Generator().manual_seed(seed)
    zipf = 1 / torch.arange(1, size + 1).float() ** 1.2
    codes = torch.multinomial(zipf, number * rows * columns, True, generator=draw).view(number, -1)
    coarse = codes[:, :4].repeat_interleave(-(-rows * columns // 4), 1)[:, : rows * columns]
    flat = torch.rand(codes.shape, generator=draw) < torch.rand(number, 1, generator=draw)
    codes = torch.where(flat, coarse, codes)
    residual = (torch.rand(codes.shape, generator=draw) * 40).round() / 8
    count = rows * columns
    return VisionTokens(
        features=torch.zeros(number, count, 1),
        codes=codes[..., None],
        quantized=torch.zeros(number, count, 1),
        residual=residual,
        positions=torch.arange(count).expand(number, count),
        grid=(rows, columns),
    )


def test_kept_tokens_are_those_of_the_quotas_on_ten_thousand_grids():
    """Exact where some γ meets the budget; else between the quota sets on both sides of the step."""
    settled = stepped = floors = 0
    for trial in range(100):
        chance = random.Random(trial)
        rows, columns = SIDES[trial % len(SIDES)]
        size = chance.choice((3, 8, 30))
        tokens = grids(100, rows, columns, size, trial)
        counts = [chance.choice((0, 1, 5, 40, 900)) for _ in range(size)]
        delta, beta = chance.choice((0.1, 1.0, 3.0)), chance.choice((0.0, 0.5, 1.0))
        keep = chance.randrange(1, rows * columns)
        settings = PruningSettings(delta=delta, beta=beta)
        pruned = prune_tokens(tokens, torch.tensor(counts), keep / (rows * columns), settings=settings)
        ratio = oracle.log_ratios(counts, 1.0, delta)
        for row in range(len(tokens)):
            codes = tokens.codes[row, :, 0].tolist()
            score = oracle.within_scores(codes, columns, tokens.residual[row].tolist(), beta, 4)
            kept = set(pruned.positions[row].tolist())
            assert len(kept) == keep
            step = oracle.between(codes, ratio, keep)
            assert bool(pruned.floor_hit[row]) == (step is None)
            if step is None:  # one token of each code is too many already: the rarest codes' stay
                best = oracle.by_quota(codes, score, dict.fromkeys(codes, 1))
                first = sorted(best, key=lambda i: (ratio[codes[i]], -score[i], i))[:keep]
                assert kept == set(first)
                floors += 1
                continue
            sets = [oracle.by_quota(codes, score, oracle.quotas(codes, ratio, g)) for g in step]
            if len(sets[0]) == keep:
                assert kept == sets[0]
                settled += 1
            else:
                assert sets[1] < kept < sets[0]
                stepped += 1
    assert settled > 3000 and stepped > 300 and floors > 1000


@pytest.mark.parametrize("gamma", [0.05, 0.3, 1.0, 4.0])
def test_the_derivation(gamma):
    """{γ* > γ} is ⌈n_k (ρ_k/ρ_ref)^γ⌉ tokens of each code, and the quotas do what the paper says of them."""
    tokens = grids(200, 6, 6, 12, seed=int(100 * gamma))
    counts = torch.tensor([0, 1, 1, 3, 9, 20, 50, 90, 200, 500, 900, 5000])
    codes = tokens.codes[..., 0]
    lr = rarity_log_ratio(counts, 1.0, 1.0)
    assert lr.argsort(stable=True).tolist() == counts.argsort(stable=True).tolist()  # rare ones shrink least
    assert float(lr.min()) == 1.0
    j, n = rank_in_code(codes, -tokens.residual, ties="raster")
    kept = keep_until(n, j, lr[codes]) > gamma
    for row in range(len(tokens)):
        here = codes[row].tolist()
        m = oracle.quotas(here, lr.tolist(), gamma)
        for k, quota in m.items():
            assert int((kept[row] & (codes[row] == k)).sum()) == quota
            assert 1 <= quota <= here.count(k)
    assert bool((keep_until(n, j, lr[codes]) > 0).all())  # γ = 0 keeps all


def test_the_formula_as_printed_cannot_prune():
    """ρ = 1/p ≥ 1: ⌈n ρ^γ⌉ grows with γ, whatever the frequencies (the reason for ρ_ref)."""
    n, p = 5, [0.7, 0.2, 0.05]
    for gamma in (0.1, 0.5, 1.0):
        for frequency in p:
            assert oracle.quotas([0] * n, [torch.tensor(frequency).log().item()], gamma)[0] >= n
