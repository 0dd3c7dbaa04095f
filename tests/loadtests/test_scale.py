"""The arithmetic of `make scale`: what counts of a request, which rows are judged, what PPO runs are compared with."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scale import Figures, Idle, Row, describe, is_enough
from scale_choice import Spread
from scale_client import TOKENS, share_within, text
from scale_ppo import PPORow, against_first

ROW = Row(8, 1, 125.0, 1.0, 0.1, 0.2, 0.13, 0.75)
RUN = PPORow(1, 2, 30.0, 1.07, 0.9, 1.0, 0.1, 0.2)


@pytest.mark.parametrize(
    ("began", "ended", "share"),
    [(10, 12, 1.0), (9, 11, 0.5), (19, 23, 0.25), (5, 25, 0.5), (1, 9, 0.0), (21, 22, 0.0)],
)
def test_a_request_counts_by_the_share_of_its_time_that_lies_within(began, ended, share):
    assert share_within(began, ended, 10, 20) == share


@given(st.floats(0.1, 5.0), st.floats(0.0, 5.0))
def test_a_replica_that_is_never_idle_counts_as_such_wherever_the_time_begins(each_s, begin):
    """One request a time, one after the other."""
    times = [each_s * number for number in range(200)]
    scored = sum(share_within(at, at + each_s, begin, begin + 10) for at in times)
    assert scored * each_s == pytest.approx(10)


@given(st.integers(0, 2**54 - 1), st.integers(0, 2**54 - 1))
def test_texts_of_two_numbers_differ_and_have_one_length(first, second):
    assert (text(first) == text(second)) == (first == second)
    assert len(text(first).split()) == TOKENS - 1


def test_a_row_below_linear_is_wrong_unless_a_core_of_a_client_or_all_cores_were_full():
    assert is_enough(ROW)
    slow = replace(ROW, of_linear=0.8)
    assert not is_enough(slow)
    assert is_enough(replace(slow, busiest_client=0.95))
    assert is_enough(replace(slow, machine=0.95))


def test_servers_that_answer_at_once_have_no_linear():
    assert is_enough(replace(ROW, of_linear=None, busiest_client=0.5))


def test_ppo_runs_are_compared_with_the_first_row_for_as_many():
    rows = against_first([RUN, replace(RUN, runs=2, rollouts_per_s=54.0), replace(RUN, runs=4, rollouts_per_s=126.0)])
    assert [row.of_linear for row in rows] == [1.0, 0.9, 1.05]


def test_what_one_core_feeds_is_told_only_where_it_was_full():
    full, half = (replace(ROW, of_linear=None, service_cpu_ms=None, busiest_client=share) for share in (0.97, 0.6))
    told = describe(Figures([ROW], [RUN], Idle(8, 110, 0.02), [full, half], [Spread(10, 1, 0.95, 1e-5)]), 0.001)
    assert told.count("one client's core, full, feeds 125 sequences/s over 8 servers: 8000 tokens/s") == 1
    assert "8 idle replicas: 110 MB at most, together 0.02 of a core" in told
