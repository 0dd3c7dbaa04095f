import pytest

from plaudit_service.queueing.pace import Pace


def test_nothing_is_expected_before_the_first_batch():
    assert Pace().seconds_for(1000) == 0


def test_the_expectation_is_in_proportion_to_the_tokens():
    pace = Pace()
    pace.observe(100, 2.0)
    assert pace.seconds_for(50) == pytest.approx(1.0)
    assert pace.seconds_for(0) == 0


def test_a_long_batch_counts_more_than_a_short_one_and_old_ones_fade():
    pace = Pace()
    pace.observe(10, 10.0)
    pace.observe(1000, 10.0)
    assert pace.seconds_for(1009) == pytest.approx(0.9 * 10 + 10)  # 0.9 x 10 + 1000 tokens took as long
    for _ in range(200):
        pace.observe(100, 1.0)
    assert pace.seconds_for(100) == pytest.approx(1.0, rel=1e-6)
