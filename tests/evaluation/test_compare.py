"""Comparisons are paired, refuse runs that are not, and do not see differences where there are none."""

import numpy as np
import pytest
from scipy.stats import binomtest

from craft.core.errors import DataError
from craft.evaluation.compare import compare, mcnemar, other_settings, sign_flips


def rows(marks, per_image=1, seed=None, seen=None):
    """Answers with the given marks."""
    return [
        {
            "id": f"q{n}",
            "image_hash": f"i{n // per_image}",
            "prompt": f"Question {n}?",
            "answer": "a",
            "prediction": "a" if mark else "b",
            "strict": bool(mark),
            "seen": True if seen is None else bool(seen[n]),
            **({} if seed is None else {"seed": seed}),
        }
        for n, mark in enumerate(marks)
    ]


@pytest.mark.parametrize(
    ("only_a", "only_b"), [(0, 0), (0, 5), (3, 3), (2, 9), (40, 61), (700, 801), (5900, 6200)]
)
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    count = only_a + only_b
    wanted = binomtest(only_b, count).pvalue if count else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(wanted, rel=1e-9)


def test_no_p_value_is_zero():
    """2 to the power of -5000 is no float; half a million pairs take no time."""
    assert 0 < mcnemar(0, 5000) < 1e-300 and mcnemar(249_000, 251_000) < 0.01
    result = compare(rows([0] * 2000), rows([1] * 2000))["all"]
    assert result.p_value > 0 and result.to_json()["p_value"] > 0
    assert compare(rows([0] * 2000, 2), rows([1] * 2000, 2))["all"].p_value > 0


def test_a_run_against_itself_does_not_differ():
    marks = [1, 0, 1, 1, 0, 0, 1, 0]
    for per_image in (1, 2):
        result = compare(rows(marks, per_image), rows(marks, per_image))["all"]
        assert (result.difference, result.p_value, result.only_a, result.only_b) == (0, 1, 0, 0)
        assert result.interval[0] < 0 < result.interval[1]


def test_eight_gains_of_eight_leave_room():
    """It was +100 [100, 100]."""
    low, high = compare(rows([0] * 8), rows([1] * 8))["all"].interval
    assert 0.3 < low < 0.9 and high == 1


def test_the_order_of_rows_and_asking_twice_gain_nothing():
    draw = np.random.default_rng(0)
    a, b = draw.random(60) < 0.5, draw.random(60) < 0.7
    once = compare(rows(a, 3), rows(b, 3))["all"]
    order = draw.permutation(60)
    shuffled = compare([rows(a, 3)[n] for n in order], rows(b, 3)[::-1])["all"]
    assert shuffled == once
    again = [
        [*rows(marks, 3), *({**row, "id": f"{row['id']} again"} for row in rows(marks, 3))]
        for marks in (a, b)
    ]
    twice = compare(*again)["all"]
    assert twice.interval == pytest.approx(once.interval) and twice.p_value == pytest.approx(
        once.p_value, abs=0.02
    )


def test_sign_flips_agree_with_mcnemar_where_questions_are_independent():
    sums = np.array([1.0] * 14 + [-1.0] * 5 + [0.0] * 30)
    assert sign_flips(sums) == pytest.approx(mcnemar(5, 14), abs=0.015)


def test_sign_flips_are_those_of_all_signs():
    sums = np.array([3.0, -1.0, 2.0, 2.0, -1.0, 0.5, 0.0])
    every = np.array(np.meshgrid(*[[-1, 1]] * len(sums))).reshape(len(sums), -1).T @ sums
    assert sign_flips(sums) == pytest.approx((np.abs(every) >= sums.sum() - 1e-9).mean(), abs=0.015)
    assert sign_flips(sums[::-1]) == sign_flips(-sums) == sign_flips(sums)
    assert 0 < sign_flips(np.ones(1_000_000)) < 0.001  # in no time


def test_a_difference_question_by_question():
    a, b = [1] * 50 + [0] * 50, [1] * 45 + [0] * 5 + [1] * 20 + [0] * 30
    found = compare(rows(a), rows(b))["all"]
    assert (found.a, found.b, found.only_a, found.only_b) == (0.5, 0.65, 5, 20)
    assert found.difference == pytest.approx(0.15)
    assert found.p_value == pytest.approx(mcnemar(5, 20)) and found.test.startswith("McNemar")
    low, high = found.interval
    assert 0 < low < 0.15 < high < 0.3
    error = 1.96 * np.sqrt((0.25 - 0.15**2) / 100)  # the normal approximation
    assert high - low == pytest.approx(2 * error, rel=0.2)


def test_several_questions_on_an_image_count_as_one_piece_of_evidence():
    """Ten images with ten equal answers each: as questions they would be a hundred independent wins."""
    a, b = [0] * 100, [1] * 60 + [0] * 40
    apart, together = compare(rows(a), rows(b))["all"], compare(rows(a, 10), rows(b, 10))["all"]
    assert (together.questions, together.images) == (100, 10)
    assert apart.p_value < 1e-15 and 0.02 < together.p_value < 0.05  # 2 * 0.5**6
    assert together.interval[1] - together.interval[0] > 2 * (apart.interval[1] - apart.interval[0])
    assert "signs" in together.test


def test_seen_and_unseen_are_compared_apart():
    seen = [1, 1, 1, 0, 0]
    found = compare(rows([1, 0, 0, 1, 1], seen=seen), rows([1, 1, 1, 0, 0], seen=seen))
    assert (found["seen"].only_b, found["unseen"].only_a) == (2, 2)
    assert compare(rows([1, 0]), rows([1, 0]))["unseen"] is None


def test_seeds_are_paired_with_their_like():
    a = rows([1, 0, 1], seed=0) + rows([0, 0, 1], seed=1)
    b = rows([1, 0, 1], seed=1) + rows([1, 0, 1], seed=0)
    found = compare(a, b)["all"]
    assert (found.questions, found.images, found.only_b) == (6, 3, 1)


def test_several_seeds_are_averaged_and_their_spread_counts():
    """As `craft eval` averages: each seed counts the same, whatever the number of its questions."""
    draw = np.random.default_rng(0)
    sizes, gains = (400, 200, 100), (0.0, 0.1, 0.2)
    a = [row for seed, size in enumerate(sizes) for row in rows([0] * size, seed=seed)]
    b = [
        row
        for seed, (size, gain) in enumerate(zip(sizes, gains, strict=True))
        for row in rows([n < gain * size for n in range(size)], seed=seed)
    ]
    result = compare(a, b)["all"]
    assert result.seeds == 3 and result.b == pytest.approx(0.1) and result.difference == pytest.approx(0.1)
    assert result.interval[0] < -0.1 and result.interval[1] > 0.3  # t is 4.3 with three seeds
    assert "for these seeds" in result.test
    marks = draw.random(200) < 0.6
    one = compare(rows([0] * 200, seed=0), rows(marks, seed=0))["all"]
    equal = compare(
        [row for seed in (0, 1, 2) for row in rows([0] * 200, seed=seed)],
        [row for seed in (0, 1, 2) for row in rows(marks, seed=seed)],
    )["all"]
    assert equal.interval == pytest.approx(one.interval) and equal.images == one.images


def test_a_class_that_only_one_run_held_out_is_neither_seen_nor_unseen():
    a = rows([1, 0, 1, 0], seen=[1, 1, 0, 0])
    b = rows([1, 1, 1, 1], seen=[1, 0, 1, 0])
    result = compare(a, b)
    assert [result[group].questions for group in ("all", "seen", "unseen")] == [4, 1, 1]


def test_settings_that_differ_are_named():
    a = {"backbone": "x", "keep_ratio": 1.0, "protocol": "generate", "data": "apparel", "asked_alone": 1}
    assert other_settings(a, {**a, "backbone": "y", "encoder": "runs/z", "asked_alone": 3}) == {}
    assert other_settings(a, {**a, "keep_ratio": 0.8}) == {"keep_ratio": (1.0, 0.8)}
    assert other_settings(a, {**a, "max_new_tokens": 9}) == {"max_new_tokens": (None, 9)}
    assert other_settings(a, {**a, "protocol": "both"}) == {"protocol": ("generate", "both")}
    with pytest.raises(DataError, match="--protocol generate and B with --protocol options"):
        other_settings(a, {**a, "protocol": "options"})
    assert other_settings({**a, "protocol": "both"}, {**a, "protocol": "options"}, "scored")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], r"A has 4 questions, B has 3, and both have 3 \(question q3 is in one only\)"),
        (lambda b: [{**b[0], "prompt": "Other?"}, *b[1:]], r"q0 is not the same .*'Other\?'"),
        (lambda b: [*b, b[0]], "B has the same question twice"),
        (lambda b: [], "B has no questions"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        compare(rows([1, 0, 1, 0]), change(rows([1, 0, 1, 0])))


def test_an_absent_mark_is_named():
    with pytest.raises(DataError, match="--protocol both"):
        compare(rows([1]), rows([1]), metric="scored")
