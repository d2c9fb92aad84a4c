"""Routing: an image goes to the domain whose codes it has, or to the base tower."""

import pytest
import torch

from craft.serving.routing import log_prior, route

K, LEVELS = 32, 2


def domain(codes, seed=0):
    """Counts of images that use a range of codes."""
    counts = torch.zeros(LEVELS, K, dtype=torch.int64)
    counts[:, codes] = 1000
    return counts


DOMAINS = {"low": domain(slice(0, 8)), "high": domain(slice(16, 24))}
GENERAL = torch.full((K,), 500, dtype=torch.int64)


@pytest.mark.parametrize("first, name", [(0, "low"), (16, "high"), (24, None), (8, None)])
def test_an_image_goes_to_its_domain_or_to_the_base_tower(first, name):
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(first, first + 8, (49, LEVELS), generator=random)
    assert route(codes, DOMAINS, GENERAL) == name


def test_the_margin_keeps_what_is_not_clear_with_the_base_tower():
    codes = torch.randint(
        0, 16, (49, LEVELS), generator=torch.Generator().manual_seed(1)
    )  # half of it is low's
    lead = float((log_prior(DOMAINS["low"])[0] - log_prior(GENERAL))[codes[:, 0]].mean())
    assert route(codes, DOMAINS, GENERAL, margin=max(lead - 0.01, 0.0)) == ("low" if lead > 0 else None)
    assert route(codes, DOMAINS, GENERAL, margin=lead + 10) is None


def test_all_levels_tell_domains_apart_that_share_level_1():
    one, two = domain(slice(0, 8)), domain(slice(0, 8))
    two[1] = 0
    two[1, 16:24] = 1000
    codes = torch.stack([torch.arange(8), torch.arange(16, 24)], dim=1)
    assert route(codes, {"one": one, "two": two}, GENERAL) == "two"


def test_without_domains_the_base_tower_answers():
    assert route(torch.zeros(4, LEVELS, dtype=torch.int64), {}, GENERAL) is None


def test_unknown_codes_have_a_probability():
    assert torch.isfinite(log_prior(torch.zeros(K, dtype=torch.int64))).all()
