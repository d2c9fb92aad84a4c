"""Intervals and spreads against closed forms."""

import math

import numpy as np
import pytest

from craft.evaluation.metrics import bootstrap_interval, grouped_interval, spread
from craft.evaluation.report import Report, merge


def test_bootstrap_is_close_to_the_normal_interval_and_repeatable():
    values = [True] * 300 + [False] * 100
    low, high = bootstrap_interval(values)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.006) and high == pytest.approx(0.75 + half, abs=0.006)
    assert bootstrap_interval(values) == (low, high)


def test_bootstrap_edges(monkeypatch):
    assert bootstrap_interval([True] * 5) == (1.0, 1.0)
    assert all(math.isnan(x) for x in bootstrap_interval([]))
    whole = bootstrap_interval(np.arange(50) / 50)
    monkeypatch.setattr("craft.evaluation.metrics._BLOCK", 500)  # in blocks: the same draws
    assert bootstrap_interval(np.arange(50) / 50) == pytest.approx(whole)


def row(right, seen, choices=("a", "b"), lenient=None):
    lenient = right if lenient is None else lenient
    return {"strict": right, "lenient": lenient, "unparseable": False, "seen": seen, "choices": list(choices)}


def test_report_and_merge():
    one = Report.of([row(True, True), row(False, True, lenient=True), row(False, False)])
    assert (one.accuracy, one.seen, one.unseen, one.lenient) == (1 / 3, 0.5, 0.0, 2 / 3)
    assert one.chance == 0.5 and one.interval[0] <= 1 / 3 <= one.interval[1]
    two = Report.of([row(True, True), row(True, True), row(True, True)])
    assert two.unseen is None
    merged = merge([one, two])
    assert merged["accuracy"] == {"mean": 2 / 3, "std": pytest.approx(math.sqrt(2) / 3), "runs": 2}
    assert merged["unseen"] is None
    assert Report.of([row(True, True, choices=())]).chance is None
    assert one.to_json()["count"] == 3 and "samples" not in one.to_json()
    assert spread([]) is None and spread([2.0]) == {"mean": 2.0, "std": 0.0, "runs": 1}


def test_a_mean_over_groups_is_narrower_than_each_and_holds_no_spread_between_them():
    draw = np.random.default_rng(3)
    groups = [draw.random(200) < share for share in (0.2, 0.5, 0.8)]
    low, high = grouped_interval(groups)
    assert low < 0.5 < high
    single = bootstrap_interval(groups[1])
    assert high - low < 0.8 * (single[1] - single[0])
    assert grouped_interval([[0.0] * 5, [1.0] * 9]) == (0.5, 0.5)
    assert grouped_interval(groups[:1]) == bootstrap_interval(groups[0])
    assert all(math.isnan(x) for x in grouped_interval([groups[0], []]))
