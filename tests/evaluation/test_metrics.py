"""Intervals: closed forms, properties, and their coverage in simulations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, t

from craft.evaluation.metrics import (
    Group,
    harmonic_mean,
    images_of,
    interval,
    interval_over_seeds,
    means_of_seeds,
    spread,
    standard_error,
)
from craft.evaluation.report import Report, interval_of, merge

DIFFERENCES = (-1.0, 1.0)


def alone(values, **about):
    """One question per image."""
    return Group(values, range(len(values)), **about)


def repeated(values, times, **about):
    """Every value `times` times, about the same image."""
    return Group(np.repeat(values, times), np.repeat(np.arange(len(values)), times), **about)


def width(ends):
    return ends[1] - ends[0]


@pytest.mark.parametrize(("right", "count"), [(0, 8), (8, 8), (1, 1), (38, 40), (300, 400), (1, 1000)])
def test_marks_without_clusters_have_wilsons_interval(right, count):
    wanted = binomtest(right, count).proportion_ci(method="wilson")
    marks = [True] * right + [False] * (count - right)
    assert interval([alone(marks)]) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@pytest.mark.parametrize("right", [0, 1])
@pytest.mark.parametrize("times", [1, 5])
def test_eight_images_with_equal_answers_leave_room(right, times):
    """0 of 8 was `0.0 to 0.0`; five questions about each image say no more if all answers are equal."""
    low, high = interval([repeated([right] * 8, times)])
    assert low <= right <= high and 0.3 < width((low, high)) < 0.5


@pytest.mark.parametrize("value", [-1, 0, 1])
def test_equal_differences_leave_room(value):
    low, high = interval([alone([value] * 8)], DIFFERENCES)
    assert -1 <= low <= value <= high <= 1 and width((low, high)) > 0.2


def test_equal_grades_leave_room():
    low, high = interval([alone([3.0] * 40)], (0.0, 5.0))
    assert low < 3 < high and high - low < 1


def test_several_questions_per_image_are_not_independent():
    """200 images with 5 questions, whose answers depend on the image: too narrow by questions."""
    draw = np.random.default_rng(0)
    marks = (draw.random((200, 5)) < draw.beta(0.5, 0.5, 200)[:, None]).ravel()
    together = interval([Group(marks, np.repeat(np.arange(200), 5))])
    apart = interval([alone(marks)])
    assert 1.5 < width(together) / width(apart) < 2.5
    assert width(together) == pytest.approx(
        2 * 1.97 * standard_error(Group(marks, np.repeat(range(200), 5))), rel=0.02
    )


def test_a_t_interval_of_many_differences_is_the_usual_one():
    draw = np.random.default_rng(0)
    values = draw.choice([-1, 0, 1], 2000, p=[0.1, 0.6, 0.3])
    low, high = interval([alone(values)], DIFFERENCES)
    half = 1.96 * values.std(ddof=1) / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=1e-3)
    assert high == pytest.approx(values.mean() + half, abs=1e-3)


def test_one_image_says_nothing_about_others():
    assert interval([Group([1, 0, 1], "aaa")], DIFFERENCES) == DIFFERENCES
    low, high = interval([Group([1, 0, 1], "aaa")])
    assert low < 0.05 and high > 0.95


def test_no_values_have_no_interval():
    assert all(math.isnan(end) for end in interval([]))
    assert all(math.isnan(end) for end in interval([alone([1, 0]), alone([])]))


ROWS = st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(0, 9)), min_size=2, max_size=40)


def grouped(rows, seed=0):
    return Group([mark for mark, _ in rows], [image for _, image in rows], seed)


@given(rows=ROWS, signs=st.booleans())
@settings(max_examples=200, deadline=None)
def test_it_contains_its_estimate_within_the_bounds(rows, signs):
    group = grouped([(2 * mark - 1, image) for mark, image in rows] if signs else rows)
    bounds = DIFFERENCES if signs else (0.0, 1.0)
    low, high = interval([group], bounds)
    assert bounds[0] <= low - 1e-12 or low == bounds[0]
    assert low - 1e-9 <= np.mean(group.values) <= high + 1e-9 <= bounds[1] + 1e-8


@given(rows=ROWS, order=st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_rows_does_not_matter(rows, order):
    shuffled = order.sample(rows, len(rows))
    assert interval([grouped(shuffled)]) == interval([grouped(rows)])
    assert interval([grouped(shuffled)], DIFFERENCES) == interval([grouped(rows)], DIFFERENCES)


@given(rows=ROWS)
@settings(max_examples=200, deadline=None)
def test_asking_everything_twice_does_not_narrow_it(rows):
    for bounds in ((0.0, 1.0), DIFFERENCES):
        assert width(interval([grouped(rows * 2)], bounds)) >= width(interval([grouped(rows)], bounds)) - 1e-9


def test_more_images_narrow_it():
    for values, bounds in (
        ([1, 1, 1, 0], (0.0, 1.0)),
        ([1, 0, 0, -1], DIFFERENCES),
        ([5, 4, 3, 3], (0.0, 5.0)),
    ):
        for times in (1, 5):
            widths = [width(interval([repeated(values * n, times)], bounds)) for n in (2, 8, 32, 128)]
            assert widths == sorted(widths, reverse=True) and widths[-1] < widths[0] / 3


@given(rows=ROWS)
@settings(max_examples=50, deadline=None)
def test_equal_seeds_have_the_interval_of_images(rows):
    rows = list({image: (mark, image) for mark, image in rows}.values())  # one question per image
    one = interval([grouped(rows)])
    assert interval([grouped(rows, seed) for seed in (0, 1, 2)]) == pytest.approx(one)


def test_the_spread_of_seeds_is_in_the_interval():
    """Three seeds gain 0, 10 and 20 points: the questions alone would give about 3 points."""
    values = [[0] * 1000, [1] * 100 + [0] * 900, [1] * 200 + [0] * 800]
    groups = [alone(marks, seed=seed) for seed, marks in enumerate(values)]
    low, high = interval(groups, DIFFERENCES)
    half = float(t.ppf(0.975, 2)) * 0.1 / math.sqrt(3)
    assert low < 0.1 - half < -0.1 and high > 0.1 + half
    assert high - low < 2.1 * half
    questions = interval([Group(group.values, group.images) for group in groups], DIFFERENCES)
    assert width(questions) < 0.06


def test_domains_of_a_seed_are_one_mean():
    """Four data sets and two seeds: the spread is that of the two means, not of the eight cells."""
    draw = np.random.default_rng(0)
    groups = [
        Group(draw.random(300) < share, [f"{domain} {n}" for n in range(300)], seed)
        for seed in (0, 1)
        for domain, share in enumerate((0.2, 0.4, 0.6, 0.8))
    ]
    assert len(means_of_seeds(groups)) == 2
    assert means_of_seeds(groups)[0] == pytest.approx(np.mean([np.mean(g.values) for g in groups[:4]]))


def test_known_means_of_seeds_have_students_interval():
    assert interval_over_seeds([0.5]) is None
    low, high = interval_over_seeds([0.1, 0.2, 0.3])
    assert (low, high) == pytest.approx(
        (0.2 - 4.3027 * 0.1 / math.sqrt(3), 0.2 + 4.3027 * 0.1 / math.sqrt(3)), abs=1e-5
    )


def test_the_same_picture_is_one_image_whatever_its_file():
    rows = [{"id": "a", "image_hash": "x"}, {"id": "b", "image_hash": "x"}, {"id": "x"}, {"id": "x"}, {}, {}]
    names = images_of(rows)
    assert names[0] == names[1] != names[2] == names[3] and len(set(names)) == 4


COVERED = 0.93  # of 95 %, less the noise of the simulation
CASES = {
    "n 40, p .95": (40, 1, 0.95, 0.0),
    "n 8, p .8": (8, 1, 0.8, 0.0),
    "200 images, 5 questions, p .55": (200, 5, 0.55, 0.6),
    "200 images, 5 questions, p .95": (200, 5, 0.95, 0.3),
    "20 images, 5 questions, p .8": (20, 5, 0.8, 0.3),
    "8 images, 5 questions, p .5": (8, 5, 0.5, 0.5),
    "8 images, 5 questions, p .95": (8, 5, 0.95, 0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_intervals_of_marks_cover_the_truth(case):
    images, questions, share, correlation = CASES[case]
    draw, names, hits = np.random.default_rng(0), np.repeat(np.arange(CASES[case][0]), CASES[case][1]), 0
    for _ in range(2000):
        chances = np.full(images, share)
        if correlation:
            scale = (1 - correlation) / correlation
            chances = draw.beta(share * scale, (1 - share) * scale, images)
        marks = (draw.random((images, questions)) < chances[:, None]).ravel()
        low, high = interval([Group(marks, names)])
        hits += low <= share <= high
    assert hits / 2000 > COVERED


@pytest.mark.slow
@pytest.mark.parametrize("images", [8, 40, 300])
@pytest.mark.parametrize("losses, gains", [(0.1, 0.3), (0.02, 0.05), (0.25, 0.25), (0.0, 0.9)])
def test_intervals_of_differences_cover_the_truth(images, losses, gains):
    draw, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        values = draw.choice([-1, 0, 1], images, p=[losses, 1 - losses - gains, gains])
        low, high = interval([alone(values)], DIFFERENCES)
        hits += low - 1e-9 <= gains - losses <= high + 1e-9
    assert hits / 1000 > COVERED


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 7])
@pytest.mark.parametrize("deviation", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("shared", [False, True], ids=["other images", "the same images"])
def test_intervals_over_seeds_cover_the_truth(seeds, deviation, shared):
    """A gain of 20 points on average; seeds differ, and images gain more or less."""
    draw, hits = np.random.default_rng(0), 0
    for _ in range(500):
        groups, of_images = [], draw.normal(0, 0.2, 300)
        for seed in range(seeds):
            of_images = of_images if shared else draw.normal(0, 0.2, 300)
            chance = np.clip(0.2 + draw.normal(0, deviation) + of_images, -1, 1)
            values = np.where(draw.random(300) < np.abs(chance), np.sign(chance), 0)
            groups.append(Group(values, [n if shared else (seed, n) for n in range(300)], seed))
        low, high = interval(groups, DIFFERENCES)
        hits += low <= 0.2 <= high
    assert hits / 500 > COVERED


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


def test_a_report_counts_an_image_once():
    marks = [True] * 5 + [False] * 5
    rows = [{**row(mark, n < 6), "id": n, "image_hash": str(n // 5)} for n, mark in enumerate(marks)]
    assert Report.of(rows).interval == pytest.approx((0, 1), abs=0.1)
    assert Report.of([{**one, "image_hash": str(n)} for n, one in enumerate(rows)]).interval[0] > 0.2


def test_reports_of_several_seeds_have_one_interval():
    rows = [{**row(n % 4 > 0, n % 5 > 0), "id": n} for n in range(200)]
    reports = [Report.of(rows, {"seed": seed}) for seed in (0, 1)]
    assert interval_of(reports) == pytest.approx(reports[0].interval)
    assert interval_of([Report.of(rows[:40], {"seed": 0}), Report.of(rows[3:5], {"seed": 1})]) is not None
    assert interval_of(reports, seen=False)[0] < interval_of(reports)[0]
    assert interval_of([Report.of([row(True, True)])], seen=False) is None


def test_the_harmonic_mean_is_low_if_one_side_is():
    assert harmonic_mean(0.9, 0.03) == pytest.approx(2 / (1 / 0.9 + 1 / 0.03))
    assert harmonic_mean(0.5, 0.5) == 0.5
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(0.9, None) is None and harmonic_mean(None, 0.9) is None
