"""`prune_tokens`: what every strategy must keep to, in properties and in examples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import craft
from craft.core.errors import CraftError
from craft.core.tokens import VisionTokens
from craft.pruning import STRATEGIES, PruningSettings, budget_of, prune_tokens
from craft.pruning.strategies import QUOTAS

NESTED = [name for name in STRATEGIES if name != "strided"]


def tokens_of(codes, grid, seed=0):
    """Tokens with these level-1 codes `[B, N]` and random everything else, codewords of width 5."""
    draw = torch.Generator().manual_seed(seed)
    levels = torch.stack([codes, (codes * 7 + torch.arange(codes.shape[1])) % 11], dim=-1)
    table = torch.randn(200, 5, generator=torch.Generator().manual_seed(9))
    return VisionTokens(
        features=torch.randn(*codes.shape, 5, generator=draw),
        codes=levels,
        quantized=table[levels[..., 0]] + 0.3 * table[100 + levels[..., 1]],
        residual=torch.rand(codes.shape, generator=draw),
        positions=torch.arange(codes.shape[1]).expand_as(codes),
        grid=grid,
        cls=torch.randn(len(codes), 5, generator=draw),
    )


@st.composite
def cases(draw):
    """(tokens, prior, scores) of a few images on a grid of up to 5 x 6."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    images, size = draw(st.integers(1, 4)), draw(st.integers(1, 20))
    seed = draw(st.integers(0, 10**6))
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(size, (images, rows * columns), generator=g)
    prior = torch.randint(0, 50, (20,), generator=g)
    return tokens_of(codes, (rows, columns), seed), prior, torch.rand(codes.shape, generator=g)


ratios = st.floats(0.01, 1.0)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
few = settings(max_examples=25, deadline=None)


def same(one, two):
    """Equal in every field."""
    for name in ("features", "codes", "quantized", "residual", "positions", "cls"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    return True


@every_strategy
@few
@given(case=cases(), ratio=ratios)
def test_exactly_the_budget_in_raster_order(strategy, case, ratio):
    tokens, prior, scores = case
    pruned = prune_tokens(tokens, prior, ratio, strategy=strategy, scores=scores)
    count = tokens.codes.shape[1]
    assert pruned.codes.shape[1] == budget_of(ratio, count)
    assert bool((pruned.positions[:, 1:] > pruned.positions[:, :-1]).all())
    rows = torch.arange(len(tokens))[:, None]
    for name in ("features", "codes", "quantized", "residual"):
        assert torch.equal(getattr(pruned, name), getattr(tokens, name)[rows, pruned.positions])
    assert torch.equal(pruned.cls, tokens.cls) and pruned.grid == tokens.grid
    assert pruned.attention_mask is None


@pytest.mark.parametrize("strategy", NESTED)
@few
@given(case=cases(), one=ratios, two=ratios)
def test_nested_over_ratios(strategy, case, one, two):
    tokens, prior, scores = case
    low, high = (
        prune_tokens(tokens, prior, ratio, strategy=strategy, scores=scores).positions
        for ratio in sorted((one, two))
    )
    for row in range(len(tokens)):
        assert set(low[row].tolist()) <= set(high[row].tolist())


@every_strategy
@few
@given(case=cases(), ratio=ratios, seed=st.integers(0, 99))
def test_rows_do_not_depend_on_batch_mates(strategy, case, ratio, seed):
    tokens, prior, scores = case
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    whole = prune_tokens(tokens, prior, ratio, strategy=strategy, scores=scores)
    alone = [
        prune_tokens(tokens[i : i + 1], prior, ratio, strategy=strategy, scores=scores[i : i + 1]).positions
        for i in order.tolist()
    ]
    assert torch.equal(torch.cat(alone), whole.positions[order])


@few
@given(case=cases())
def test_everything_is_kept_at_one(case):
    tokens, prior, _ = case
    assert prune_tokens(tokens, prior, 1.0) is tokens
    assert prune_tokens(tokens, None, 1.0) is tokens


@pytest.mark.parametrize("strategy", QUOTAS)
@few
@given(case=cases(), ratio=ratios)
def test_floor_and_codes(strategy, case, ratio):
    """No code is lost above the floor; below it no code has two tokens, and `floor_hit` says so."""
    tokens, prior, _ = case
    pruned = prune_tokens(tokens, prior, ratio, strategy=strategy)
    if pruned is tokens:
        return
    for row in range(len(tokens)):
        before, after = set(tokens.codes[row, :, 0].tolist()), pruned.codes[row, :, 0].tolist()
        assert bool(pruned.floor_hit[row]) == (len(before) > len(after))
        if pruned.floor_hit[row]:
            assert len(set(after)) == len(after)
            lost = before - set(after)
            assert min(int(prior[k]) for k in lost) >= max(int(prior[k]) for k in after)
        else:
            assert set(after) == before


@pytest.mark.parametrize("strategy", QUOTAS)
@few
@given(case=cases(), ratio=ratios)
def test_approx_keeps_whole_quota_sets_near_the_budget(strategy, case, ratio):
    tokens, prior, _ = case
    pruned = prune_tokens(tokens, prior, ratio, strategy=strategy, budget="approx")
    if pruned is tokens:
        return
    exact = prune_tokens(tokens, prior, ratio, strategy=strategy)
    keep = exact.codes.shape[1]
    for row in range(len(tokens)):
        mask = pruned.attention_mask[row]
        kept = pruned.positions[row][mask]
        assert bool((kept[1:] > kept[:-1]).all()) and bool((mask[1:] <= mask[:-1]).all())
        assert set(pruned.codes[row, mask, 0].tolist()) == set(tokens.codes[row, :, 0].tolist())
        ids = set(kept.tolist())
        other = set(exact.positions[row].tolist())
        assert ids <= other or other <= ids  # one order for both budgets
        alone = prune_tokens(tokens[row : row + 1], prior, ratio, strategy=strategy, budget="approx")
        assert torch.equal(alone.positions[0][alone.attention_mask[0]], kept)
        if pruned.floor_hit[row]:
            assert len(ids) == len(set(tokens.codes[row, :, 0].tolist())) > keep


def test_approx_takes_the_nearer_side():
    """Three codes of two tokens, all as frequent: γ keeps 6 or 3, nothing between."""
    tokens = tokens_of(torch.tensor([[0, 0, 1, 1, 2, 2]]), (1, 6))
    sizes = {}
    for keep in range(1, 6):
        pruned = prune_tokens(tokens, torch.ones(200, dtype=torch.long), keep / 6, budget="approx")
        sizes[keep] = int(pruned.attention_mask.sum())
    assert sizes == {1: 3, 2: 3, 3: 3, 4: 3, 5: 6}


def test_frequent_codes_shrink_first():
    """Ten background tokens of a common code, two of a rare one: half the tokens, both rare ones."""
    codes = torch.tensor([[0] * 5 + [1] * 2 + [0] * 5])
    prior = torch.tensor([1000, 3] + [50] * 198)
    pruned = prune_tokens(tokens_of(codes, (2, 6)), prior, 0.5)
    assert pruned.codes[0, :, 0].tolist().count(1) == 2
    swapped = torch.tensor([3, 1000] + [50] * 198)
    assert prune_tokens(tokens_of(codes, (2, 6)), swapped, 0.5).codes[0, :, 0].tolist().count(1) == 1


def test_unseen_codes_are_the_rarest():
    codes = torch.tensor([[0, 1, 2, 3]])
    prior = torch.tensor([5, 0, 9, 1] + [7] * 196)
    kept = [prune_tokens(tokens_of(codes, (2, 2)), prior, m / 4).codes[0, :, 0].tolist() for m in (1, 2, 3)]
    assert kept == [[1], [1, 3], [0, 1, 3]]


def test_residual_and_isolation_choose_within_a_code():
    """One code everywhere: β = 0 keeps the largest residual, β = 1 the token far from the cluster."""
    tokens = tokens_of(torch.zeros(1, 25, dtype=torch.long), (5, 5))
    prior = torch.ones(200, dtype=torch.long)
    largest = int(tokens.residual[0].argmax())
    assert prune_tokens(tokens, prior, 0.04, settings=PruningSettings(beta=0.0)).positions.tolist() == [
        [largest]
    ]
    cluster = torch.tensor([[0, 1, 2, 5, 6, 7, 24]])
    left = VisionTokens(
        features=tokens.features[:, cluster[0]],
        codes=tokens.codes[:, cluster[0]],
        quantized=tokens.quantized[:, cluster[0]],
        residual=tokens.residual[:, cluster[0]],
        positions=cluster,
        grid=(5, 5),
    )
    assert prune_tokens(left, prior, 1 / 7, settings=PruningSettings(beta=1.0)).positions.tolist() == [[24]]


def test_random_differs_between_images_and_seeds():
    codes = torch.arange(64).reshape(2, 32)
    drawn = [
        prune_tokens(
            tokens_of(codes, (4, 8)), None, 0.5, strategy="random", settings=PruningSettings(seed=seed)
        ).positions
        for seed in range(40)
    ]
    assert not torch.equal(drawn[0][0], drawn[0][1]) and not torch.equal(drawn[0], drawn[1])
    often = torch.zeros(32).index_add(0, torch.stack(drawn).flatten(), torch.ones(40 * 2 * 16))
    assert float(often.min()) > 20 and float(often.max()) < 60  # 80 draws of one half: 40 each, ± 4.5


def test_strided_is_even():
    tokens = tokens_of(torch.zeros(2, 12, dtype=torch.long), (3, 4))
    assert prune_tokens(tokens, None, 0.25, strategy="strided").positions[0].tolist() == [2, 6, 10]


def test_divprune_is_the_greedy_of_its_paper():
    """Against the quadratic form: each step over all distances to everything chosen."""
    tokens = tokens_of(torch.randint(90, (6, 30), generator=torch.Generator().manual_seed(3)), (5, 6))
    unit = torch.nn.functional.normalize(tokens.quantized.double(), dim=2)
    kept = prune_tokens(tokens, None, 0.5, strategy="divprune").positions
    for row in range(6):
        distance = 1 - unit[row] @ unit[row].T
        chosen = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
        while len(chosen) < 15:
            chosen.append(int(distance[chosen].amin(0).argmax()))
        assert sorted(chosen) == kept[row].tolist()


def test_scores_decide():
    tokens = tokens_of(torch.zeros(2, 6, dtype=torch.long), (2, 3))
    scores = torch.tensor([[0.0, 5, 1, 4, 2, 3], [1, 1, 1, 0, 0, 2]])
    for strategy in ("cls-attention", "fastv"):
        pruned = prune_tokens(tokens, None, 0.5, strategy=strategy, scores=scores)
        assert pruned.positions.tolist() == [[1, 3, 5], [0, 1, 5]]


def test_gradient_reaches_what_is_kept():
    tokens = tokens_of(torch.tensor([[0, 0, 0, 1]]), (2, 2))
    features = tokens.features.clone().requires_grad_()
    alive = VisionTokens(**{**tokens.__dict__, "features": features, "quantized": features * 2})
    pruned = prune_tokens(alive, torch.ones(200, dtype=torch.long), 0.5)
    pruned.quantized.sum().backward()
    touched = set(features.grad[0].abs().sum(1).nonzero()[:, 0].tolist())
    assert touched == set(pruned.positions[0].tolist())


def test_names_and_budget():
    assert craft.prune_tokens is prune_tokens and craft.pruning.STRATEGIES is STRATEGIES
    assert [budget_of(0.8, 256), budget_of(0.8, 49), budget_of(0.001, 9), budget_of(1.0, 7)] == [
        205,
        39,
        1,
        7,
    ]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"keep_ratio": 0.0}, "above 0 and at most 1"),
        ({"keep_ratio": 1.2}, "above 0 and at most 1"),
        ({"keep_ratio": float("nan")}, "above 0 and at most 1"),
        ({"strategy": "clever"}, "use one of random, strided"),
        ({"budget": "approx", "strategy": "divprune"}, "has none; use budget='exact'"),
        ({"prior": None}, r"craft prior DATA"),
        ({"prior": torch.ones(2, dtype=torch.long)}, "another codebook"),
        ({"strategy": "fastv"}, "there are none"),
        ({"strategy": "fastv", "scores": torch.ones(1, 3)}, r"shape \[1, 3\]"),
    ],
)
def test_mistakes(change, words):
    tokens = tokens_of(torch.tensor([[0, 1, 2, 3]]), (2, 2))
    arguments = {"prior": torch.ones(200, dtype=torch.long), "keep_ratio": 0.5, **change}
    with pytest.raises(CraftError, match=words):
        prune_tokens(tokens, **arguments)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"delta": 0.0}, "above 0"),
        ({"delta": float("inf")}, "finite"),
        ({"beta": 1.5}, "between 0 and 1"),
        ({"alpha": 0.0}, "unseen codes"),
        ({"neighbours": 0}, "at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(change, words):
    with pytest.raises(CraftError, match=words):
        PruningSettings(**change)


def test_padded_tokens_are_refused():
    tokens = tokens_of(torch.tensor([[0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 0, 1]]), (2, 3))
    prior = torch.ones(200, dtype=torch.long)
    ragged = prune_tokens(tokens, prior, 0.4, budget="approx")
    with pytest.raises(CraftError, match="padded"):
        prune_tokens(ragged, prior, 0.4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_strategy
def test_the_same_sets_on_a_gpu(strategy):
    codes = torch.randint(60, (32, 256), generator=torch.Generator().manual_seed(1)) // 3
    tokens, prior = tokens_of(codes, (16, 16)), torch.arange(200) ** 2
    scores = torch.rand(codes.shape, generator=torch.Generator().manual_seed(2))
    for ratio in (0.1, 0.4, 0.8):
        here = prune_tokens(tokens, prior, ratio, strategy=strategy, scores=scores)
        there = prune_tokens(tokens.to("cuda"), prior, ratio, strategy=strategy, scores=scores)
        assert torch.equal(here.positions, there.positions.cpu())
