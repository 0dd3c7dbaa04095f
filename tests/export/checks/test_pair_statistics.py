"""Numbers by hand: which rule preference pairs speak for, and when they cannot tell."""

import math

import numpy as np
import pytest

from plaudit_export.checks.pair_statistics import MIN_PAIRS, clearly_better, evident, log_sigmoid, standings

# log sigmoid(log 3) = log(3 / 4), log sigmoid(-log 3) = log(1 / 4), log sigmoid(0) = log(1 / 2)
LOG3 = math.log(3)


def repeated(*margins: float, times: int = MIN_PAIRS) -> np.ndarray:
    """The same margins over and over, as many pairs as nothing is clear without."""
    return np.resize(np.array(margins), times)


def test_a_standing_by_hand():
    first, second = np.array([LOG3, LOG3, LOG3, -LOG3]), np.array([LOG3, -LOG3, 0.0, LOG3])
    best, other = standings([first, second])
    assert (best.accuracy, other.accuracy) == (0.75, 0.5)  # a tie is not ranked
    assert best.mean_margin == pytest.approx(LOG3 / 2)
    assert best.log_sigmoid == pytest.approx((3 * math.log(3 / 4) + math.log(1 / 4)) / 4)
    assert (best.behind, best.behind_error) == (0.0, 0.0)
    # Differences 0, log 3, log 1.5, -log 3: their mean is log(1.5) / 4.
    differences = [0.0, LOG3, math.log(1.5), -LOG3]
    mean = math.log(1.5) / 4
    variance = sum((each - mean) ** 2 for each in differences) / 3
    assert other.behind == pytest.approx(mean)
    assert other.behind_error == pytest.approx(math.sqrt(variance / 4))


def test_large_margins_do_not_overflow():
    assert log_sigmoid(np.array([-1e4, 0.0, 1e4])) == pytest.approx([-1e4, math.log(0.5), 0.0])


def test_a_difference_is_clear_above_three_standard_errors_and_not_below():
    # Of 4 k pairs k differ by log 3 and the rest by 0: mean log(3) / 4, standard deviation about log(3) * sqrt(3) / 4,
    # so the mean is sqrt(N / 3) standard errors: far above 3 for N = 200. Where 1 of 40 differs it is sqrt(N / 39).
    assert clearly_better(repeated(LOG3, 0, 0, 0), repeated(-LOG3, 0, 0, 0))
    rare = [LOG3, *[0.0] * 39]
    assert not clearly_better(repeated(*rare), repeated(-LOG3, *rare[1:]))
    assert clearly_better(repeated(*rare, times=400), repeated(-LOG3, *rare[1:], times=400))


def test_nothing_is_clear_under_200_pairs():
    assert clearly_better(repeated(1.0), repeated(-1.0))
    assert not clearly_better(repeated(1.0, times=199), repeated(-1.0, times=199))
    assert evident([repeated(1.0, times=199), repeated(-1.0, times=199)]) is None


def test_a_rule_that_ranks_more_pairs_right_is_never_clearly_worse():
    bold = repeated(2.0, 2.0, 2.0, -30.0)  # three in four, and sure of itself where it is wrong
    timid = repeated(0.01, -0.01)
    assert log_sigmoid(timid).mean() > log_sigmoid(bold).mean()
    assert not clearly_better(timid, bold)
    assert evident([bold, timid]) is None


def test_a_rule_is_evident_where_it_is_clearly_better_than_each_other_one():
    right, wrong, near = repeated(2.0, 1.0), repeated(0.1, -0.1), repeated(2.0, 1.0)
    assert evident([wrong, right, -right]) == 1
    assert evident([wrong, right, near]) is None


def test_no_rule_is_evident_where_the_best_one_knows_no_more_than_chance():
    blind, worse = repeated(0.001, -0.001), repeated(-2.0, -1.0)
    assert clearly_better(blind, worse)
    assert evident([blind, worse]) is None


def test_one_rule_alone_is_evident_by_chance_alone():
    assert evident([repeated(2.0)]) == 0
    assert evident([repeated(-2.0)]) is None
