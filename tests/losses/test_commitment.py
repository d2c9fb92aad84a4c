"""Eq. 3: its two reductions, its cumulative form, and where gradient goes."""

import pytest
import torch

from craft.losses import commitment, commitment_cumulative
from craft.quantize import ResidualCodebook


def quantised(width=8):
    codebook = ResidualCodebook(torch.randn(3, 16, width))
    features = torch.randn(2, 5, width, requires_grad=True)
    return features, codebook.quantize(features.detach(), partial_sums=True)


def test_sum_is_the_squared_norm_and_mean_is_that_over_the_width():
    features, q = quantised()
    by_hand = torch.stack(
        [(z - c).norm() ** 2 for z, c in zip(features[0], q.quantized[0], strict=True)]
    ).mean()
    torch.testing.assert_close(commitment(features[:1], q.quantized[:1], "sum"), by_hand)
    total = commitment(features, q.quantized, "sum")
    torch.testing.assert_close(commitment(features, q.quantized, "mean") * 8, total)
    torch.testing.assert_close(commitment(features, q.quantized), total)  # the default is Eq. 3 as printed


def test_cumulative_is_the_mean_over_levels():
    features, q = quantised()
    levels = [commitment(features, q.partial_sums[:, :, level], "mean") for level in range(3)]
    torch.testing.assert_close(commitment_cumulative(features, q.partial_sums), torch.stack(levels).mean())
    torch.testing.assert_close(levels[-1], commitment(features, q.quantized, "mean"))
    torch.testing.assert_close(
        commitment_cumulative(features, q.partial_sums, "sum"),
        8 * commitment_cumulative(features, q.partial_sums, "mean"),
    )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradient_pulls_features_to_their_codewords_and_stops_there(reduction):
    features, q = quantised()
    straight_through = q.quantized + features - features.detach()
    commitment(features, straight_through, reduction).backward()
    scale = 2 / 10 / (8 if reduction == "mean" else 1)
    torch.testing.assert_close(features.grad, scale * (features - q.quantized).detach())


def test_zero_on_the_codewords_and_float32_in_bfloat16():
    features, q = quantised()
    assert commitment(q.quantized, q.quantized) == 0
    assert commitment(features.bfloat16(), q.quantized.bfloat16()).dtype == torch.float32
