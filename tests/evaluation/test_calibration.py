"""Calibration: temperature scaling finds the temperature of overconfident scores, and the error sees it."""

import numpy as np
import pytest

from craft.evaluation.calibration import fit_temperature, measure, probabilities


def questions(temperature, count=4000, options=4, seed=0):
    """Scores whose right options follow the distribution at a temperature."""
    random = np.random.default_rng(seed)
    scores = random.normal(scale=4, size=(count, options))
    right = [int(random.choice(options, p=probabilities(row, temperature))) for row in scores.tolist()]
    return scores.tolist(), right


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5, 6.0])
def test_the_temperature_of_the_answers_is_found(temperature):
    scores, right = questions(temperature)
    fitted = fit_temperature(scores, right)
    assert fitted == pytest.approx(temperature, rel=0.1)
    before, after = measure(scores, right), measure(scores, right, fitted)
    assert after.error < 0.03 and after.nll <= before.nll + 1e-9
    assert after.accuracy == before.accuracy  # a temperature changes no answer
    if temperature > 2:
        assert before.error > 0.1 and before.confidence > after.confidence


def test_probabilities_are_those_of_a_softmax():
    assert probabilities([0.0, 0.0]) == pytest.approx([0.5, 0.5])
    assert probabilities([-1000.0, -1001.0]) == pytest.approx([0.731, 0.269], abs=1e-3)
    assert probabilities([-1.0, -2.0], 1e6) == pytest.approx([0.5, 0.5], abs=1e-5)


def test_the_error_by_hand():
    """Two bins: confidence 0.6 with half of them right, confidence 0.9 with all right."""
    scores = [[np.log(0.6), np.log(0.4)]] * 4 + [[np.log(0.9), np.log(0.1)]] * 4
    right = [0, 0, 1, 1, 0, 0, 0, 0]
    result = measure(scores, right, bins=2)
    assert result.error == pytest.approx((0.1 + 0.1) / 2)
    assert result.bins == (pytest.approx((0.6, 0.5, 4)), pytest.approx((0.9, 1.0, 4)))
    assert result.nll == pytest.approx(-(2 * np.log(0.6) + 2 * np.log(0.4) + 4 * np.log(0.9)) / 8)


def test_bins_have_equal_mass():
    scores, right = questions(1.0, count=1003)
    counts = [count for _, _, count in measure(scores, right).bins]
    assert len(counts) == 15 and sum(counts) == 1003 and max(counts) - min(counts) <= 1
    assert len(measure(scores[:3], right[:3]).bins) == 3


def test_extreme_scores_are_no_infinity():
    result = measure([[0.0, -2000.0]], [1])
    assert np.isfinite(result.nll) and result.accuracy == 0
    assert np.isfinite(fit_temperature([[0.0, -2000.0]], [1]))
    with pytest.raises(ValueError, match="questions"):
        measure([], [])
