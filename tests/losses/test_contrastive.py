"""Eq. 4 against a slow reference that follows the paper's formula term by term."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from craft.losses import contrastive


def slow_contrastive(image, text, classes, log_temperature, bias=None):
    """Eq. 4 with loops."""
    tau = log_temperature.exp()
    losses = []
    for i in range(len(image)):

        def s(j, i=i):
            value = tau * torch.dot(image[i], text[j]) / (image[i].norm() * text[j].norm())
            return value if bias is None else value + bias

        loss = -torch.log(torch.sigmoid(s(i)))
        for j in range(len(text)):
            if classes[j] != classes[i]:
                loss = loss - torch.log(1 - torch.sigmoid(s(j)))
        losses.append(loss)
    return torch.stack(losses).mean()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans(), st.integers(0, 1000))
def test_equals_slow_reference_in_value_and_gradient(labels, with_bias, seed):
    g = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(len(labels), 5, generator=g, requires_grad=True) for _ in range(2))
    log_temperature = torch.tensor(0.7, requires_grad=True)
    bias = torch.tensor(-0.4, requires_grad=True) if with_bias else None
    inputs = [image, text, log_temperature] + ([bias] if bias is not None else [])
    fast = contrastive(image, text, torch.tensor(labels), log_temperature, bias)
    slow = slow_contrastive(image, text, labels, log_temperature, bias)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    grads = torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_texts_of_the_same_class_do_not_count():
    image, text = torch.randn(4, 6), torch.randn(4, 6)
    classes = torch.tensor([0, 0, 1, 2])
    before = contrastive(image[:1], text[:1], classes[:1], torch.tensor(1.0))
    pair = contrastive(image[:2], text[:2], classes[:2], torch.tensor(1.0))
    second = contrastive(image[1:2], text[1:2], classes[1:2], torch.tensor(1.0))
    torch.testing.assert_close(pair, (before + second) / 2)


def test_no_overflow_at_high_temperature_and_float32_under_autocast():
    image = torch.eye(3)
    high = torch.tensor(math.log(1e4), requires_grad=True)
    loss = contrastive(image, image.roll(1, 0), torch.arange(3), high)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(high.grad)
    image, text, classes = torch.randn(4, 64), torch.randn(4, 64), torch.arange(4)
    expected = contrastive(image, text, classes, torch.tensor(2.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive(image, text, classes, torch.tensor(2.0)), expected)


def test_temperature_learns():
    log_temperature = torch.tensor(0.0, requires_grad=True)
    image = torch.eye(4)
    contrastive(image, image, torch.zeros(4, dtype=torch.long), log_temperature).backward()
    assert log_temperature.grad < 0  # matching pairs alone: a larger τ lowers the loss


def test_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\[B, d\]"):
        contrastive(torch.randn(2, 4), torch.randn(2, 5), torch.arange(2), torch.tensor(0.0))


@pytest.mark.parametrize("count, size", [(12, 5), (12, 1), (7, 3), (24, 24), (9, 8)])
def test_parts_against_the_texts_of_all_are_the_whole(count, size):
    draw = torch.Generator().manual_seed(count)
    image, text = (torch.randn(count, 16, generator=draw) for _ in range(2))
    classes = torch.randint(4, (count,), generator=draw)
    results = []
    for bounds in (count, size):
        tower, temperature = image.clone().requires_grad_(), torch.tensor(2.3, requires_grad=True)
        total = torch.zeros(())
        for start in range(0, count, bounds):
            part = slice(start, start + bounds)
            loss = contrastive(tower[part], text[part], classes[part], temperature, others=(text, classes))
            total = total + loss * len(tower[part]) / count
        total.backward()
        results.append((total.detach(), tower.grad, temperature.grad))
    alone = contrastive(image, text, classes, torch.tensor(2.3))
    torch.testing.assert_close(results[0][0], alone, rtol=2e-6, atol=0)
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() <= 2e-6 * one.norm()
