import pytest

from plaudit_demo.studies.curves import best_gold, best_within, mean_and_std, mixed_at


def point(kl, score, gold):
    return {"kl": kl, "score": score, "gold": gold}


CURVE = [point(0.0, 0.0, -1.0), point(1.0, 0.5, 2.0), point(9.0, 2.0, 0.0), point(3.0, 1.0, 1.0)]


def test_within_a_kl_the_checkpoint_of_the_highest_score_counts_wherever_it_was_reached():
    assert best_within(CURVE, 0.5) == CURVE[0]
    assert best_within(CURVE, 1.0) == CURVE[1]
    assert best_within(CURVE, 5.0) == CURVE[3]
    assert best_within(CURVE, 9.0) == CURVE[2]


def test_the_start_is_within_a_kl_that_was_estimated_below_0():
    assert best_within(CURVE, -0.02) == CURVE[0]


def test_a_mixture_of_two_neighbours_has_their_weighted_mean():
    points = [point(0.0, 0.0, -1.0), point(1.0, 2.0, 1.0), point(3.0, 3.0, 1.5)]
    assert mixed_at(points, 0.25) == pytest.approx(point(0.25, 0.5, -0.5))
    assert mixed_at(points, 2.0) == pytest.approx(point(2.0, 2.5, 1.25))
    assert mixed_at(points, 1.0) == pytest.approx(points[1])
    assert mixed_at(points, 3.0) == pytest.approx(points[2])


@pytest.mark.parametrize("kl", [-0.1, 3.1])
def test_nothing_is_read_beyond_the_points(kl):
    assert mixed_at([point(0.0, 0.0, -1.0), point(3.0, 3.0, 1.5)], kl) is None


def test_gold_is_highest_where_it_is_highest():
    assert best_gold(CURVE) == CURVE[1]


def test_the_spread_is_the_sample_standard_deviation_over_seeds():
    assert mean_and_std([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert mean_and_std([1.0]) == "1.00"
