import math
import statistics

from hypothesis import given
from hypothesis import strategies as st

from plaudit_service.serving.score_window import NUM_SCORES, ScoreWindow

pairs = st.tuples(st.floats(-100, 100, width=16), st.integers(1, 1000))


def filled(values):
    window = ScoreWindow()
    for score, num_tokens in values:
        window.add(score, num_tokens)
    return window


def test_nothing_is_known_of_no_scores():
    window = ScoreWindow()
    assert all(map(math.isnan, (window.mean(), window.std(), window.length_correlation())))


def test_the_correlation_is_not_defined_where_scores_or_lengths_are_constant():
    assert math.isnan(filled([(1.0, 5), (1.0, 9)]).length_correlation())
    assert math.isnan(filled([(1.0, 5), (2.0, 5)]).length_correlation())


def test_a_score_that_grows_with_length_correlates_with_it():
    assert math.isclose(filled([(0.5 * n, n) for n in range(1, 30)]).length_correlation(), 1.0)
    assert math.isclose(filled([(-0.5 * n, n) for n in range(1, 30)]).length_correlation(), -1.0)


@given(st.lists(pairs, min_size=1, max_size=50))
def test_mean_and_standard_deviation_are_those_of_the_scores(values):
    scores = [score for score, _ in values]
    assert math.isclose(filled(values).mean(), statistics.fmean(scores), abs_tol=1e-9)
    assert math.isclose(filled(values).std(), statistics.pstdev(scores), abs_tol=1e-6)


def test_only_the_latest_scores_count():
    window = filled([(100.0, 1)] * 10 + [(2.0, 1)] * NUM_SCORES)
    assert (window.mean(), window.std()) == (2.0, 0.0)
