"""Random views: pure functions of seed, step and id, within range, and none at strength 0."""

import torch

from craft.training.augment import augment

PIXELS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
IDS = ("a", "b", "c", "d")


def test_no_strength_is_no_change():
    assert augment(PIXELS, IDS, 0, 3, 0.0) is PIXELS


def test_a_view_depends_on_seed_step_and_id_alone():
    views = augment(PIXELS, IDS, 0, 3)
    assert torch.equal(augment(PIXELS[2:3], IDS[2:3], 0, 3)[0], views[2])
    for other in (
        augment(PIXELS, IDS, 1, 3),
        augment(PIXELS, IDS, 0, 4),
        augment(PIXELS, tuple("efgh"), 0, 3),
    ):
        assert not torch.equal(other, views)


def test_views_stay_near_and_in_range():
    step = torch.linspace(-1, 1, 32)
    smooth = (step[:, None] * step)[None, None].expand(4, 3, 32, 32).contiguous() * 0.8
    views = augment(smooth, IDS, 0, 0)
    assert views.shape == smooth.shape and views.abs().max() <= 1
    assert 0 < (views - smooth).abs().mean() < 0.3
