from plaudit_ppo.studies.curves import best_gold, best_within, mean_and_std


def point(kl, score, gold):
    return {"kl": kl, "score": score, "gold": gold}


CURVE = [point(0.0, 0.0, -1.0), point(1.0, 0.5, 2.0), point(9.0, 2.0, 0.0), point(3.0, 1.0, 1.0)]


def test_within_a_kl_the_checkpoint_of_the_highest_score_counts_wherever_it_was_reached():
    assert best_within(CURVE, 0.5) == CURVE[0]
    assert best_within(CURVE, 1.0) == CURVE[1]
    assert best_within(CURVE, 5.0) == CURVE[3]
    assert best_within(CURVE, 9.0) == CURVE[2]


def test_gold_is_highest_where_it_is_highest():
    assert best_gold(CURVE) == CURVE[1]


def test_the_spread_is_the_sample_standard_deviation_over_seeds():
    assert mean_and_std([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert mean_and_std([1.0]) == "1.00"
