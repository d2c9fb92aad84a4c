"""Routing: an image goes to the domain whose codes it has, or to the base tower."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from craft.serving.routing import Domain, log_prior, route, score, typical_score

K, LEVELS, TOKENS = 32, 2, 49


def pictures(first, count=200, width=8, seed=0):
    """Codes of images whose tokens are drawn from `width` codes."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(first, first + width, (count, TOKENS, LEVELS), generator=random)


def counted(images):
    return torch.stack([torch.bincount(images[..., n].flatten(), minlength=K) for n in range(LEVELS)])


def domain(images):
    return Domain(log_prior(counted(images)), typical_score(images, counted(images)))


DOMAINS = {"low": domain(pictures(0)), "high": domain(pictures(16))}


@pytest.mark.parametrize("first, name", [(0, "low"), (16, "high"), (24, None), (8, None)])
def test_an_image_goes_to_its_domain_or_to_the_base_tower(first, name):
    routed = [route(codes, DOMAINS) for codes in pictures(first, 100, seed=1)]
    assert routed.count(name) >= 88  # a tenth of a domain's own images is unusual


def test_an_image_half_of_another_kind_goes_to_the_base_tower():
    mixed = torch.cat([pictures(0, 50, seed=2)[:, :25], pictures(8, 50, seed=2)[:, 25:]], dim=1)
    assert {route(codes, DOMAINS) for codes in mixed} == {None}


def test_the_margin_moves_the_bound():
    (codes,) = pictures(0, 1, seed=3)
    lead = score(codes, DOMAINS["low"].logs) - DOMAINS["low"].typical
    assert route(codes, DOMAINS, lead - 0.01) == "low" and route(codes, DOMAINS, lead + 0.01) is None
    assert route(pictures(8, 1)[0], DOMAINS, -100.0) in DOMAINS


def test_all_levels_tell_domains_apart_that_share_level_1():
    one, two = pictures(0), pictures(0)
    two[..., 1] = pictures(16)[..., 1]
    domains = {"one": domain(one), "two": domain(two)}
    assert route(two[0], domains) == "two" and route(one[0], domains) == "one"


def test_without_domains_the_base_tower_answers():
    assert route(torch.zeros(4, LEVELS, dtype=torch.int64), {}) is None


def test_unknown_codes_have_a_probability():
    assert torch.isfinite(log_prior(torch.zeros(K, dtype=torch.int64))).all()


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 12), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_every_image_is_scored_by_the_others(count, seed, share):
    images = pictures(0, count, width=K, seed=seed)
    others = [counted(torch.cat([images[:n], images[n + 1 :]])) for n in range(count)]
    slow = [score(codes, log_prior(rest)) for codes, rest in zip(images, others, strict=True)]
    expected = float(torch.tensor(slow, dtype=torch.float64).quantile(share))
    assert typical_score(images, counted(images), share) == pytest.approx(expected)
