import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_demo.studies.best_of_n import best_of_n_weights, kl_at_least, kl_bound


def best_of_every_subset(scores, n):
    """The slow way: the best of each subset, ties shared evenly."""
    weights = [0.0] * len(scores)
    subsets = list(combinations(range(len(scores)), n))
    for subset in subsets:
        top = max(scores[index] for index in subset)
        best = [index for index in subset if scores[index] == top]
        for index in best:
            weights[index] += 1 / len(best) / len(subsets)
    return weights


@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.data())
def test_the_weights_are_those_of_the_best_of_every_subset(scores, data):
    n = data.draw(st.integers(1, len(scores)))
    weights = best_of_n_weights(scores, n)
    by_score = dict.fromkeys(scores, 0.0)
    expected = dict(by_score)
    for score, ours, slow in zip(scores, weights, best_of_every_subset(scores, n), strict=True):
        by_score[score] += ours
        expected[score] += slow
    assert by_score == pytest.approx(expected)
    assert sum(weights) == pytest.approx(1)


def test_the_best_of_all_is_the_best_and_the_best_of_one_is_any():
    assert best_of_n_weights([3.0, 1.0, 2.0], 3) == [1, 0, 0]
    assert best_of_n_weights([3.0, 1.0, 2.0], 1) == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("n", [0, 4])
def test_n_has_to_lie_within_the_completions(n):
    with pytest.raises(ValueError, match=f"n = {n}, limits 1 and 3"):
        best_of_n_weights([1.0, 2.0, 3.0], n)


def test_the_bound_of_best_of_four_is_0_64_nats():
    assert kl_bound(1) == 0
    assert kl_bound(4) == pytest.approx(math.log(4) - 0.75)


def test_improbable_completions_take_nothing_off_the_bound():
    assert kl_at_least([0.1, 0.2, 0.3, 0.4], [-60.0] * 4, 2) == pytest.approx(kl_bound(2), abs=1e-9)


def test_the_kl_of_a_policy_with_two_completions_lies_between_both_bounds():
    # P(good) = P(bad) = 1/2: best of two is good with 3/4.
    exact = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl_at_least([1.0, 0.0] * 500, [math.log(0.5)] * 1000, 2) < exact < kl_bound(2)


def test_a_policy_with_one_completion_stays_where_it_is():
    # F = p = 1: the second term is log(1 / n).
    assert kl_at_least([1.0] * 8, [0.0] * 8, 4) == pytest.approx(kl_bound(4) - math.log(4))
