"""The retention loss: a distance to what was, and no gradient into it."""

import torch

from craft.losses import retention


def test_it_is_the_mean_squared_distance_and_pulls_one_side():
    now = torch.randn(2, 3, 4, dtype=torch.bfloat16, requires_grad=True)
    then = torch.randn(2, 3, 4, requires_grad=True)
    loss = retention(now, then)
    assert loss.dtype == torch.float32
    difference = now.detach().float() - then.detach()
    torch.testing.assert_close(loss.detach(), (difference**2).sum() / 24)
    loss.backward()
    assert then.grad is None and now.grad is not None
    torch.testing.assert_close(now.grad, (2 * difference / 24).bfloat16())
    assert retention(then, then) == 0
