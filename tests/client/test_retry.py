import pytest

from plaudit_client.errors import ConnectionFailed, ServiceUnavailable
from plaudit_client.retry import HedgeBudget, RetryBudget, next_delay_s, parse_retry_after, probe_delay_s


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", None),
        ("-1", None),
        ("0.5", 0.5),
        ("1", 1.0),
        ("60", 60.0),
        ("60.1", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_obeyed_between_0_and_60_seconds(header, seconds):
    assert parse_retry_after(header) == seconds


@pytest.mark.parametrize(
    ("retries_done", "chance", "delay_s"),
    [
        (0, 1.0, 0.25),
        (1, 1.0, 0.5),
        (2, 1.0, 1.0),
        (5, 1.0, 8.0),
        (6, 1.0, 8.0),  # the cap
        (5000, 1.0, 8.0),
        (2, 0.5, 0.5),  # full jitter: from zero
        (2, 0.0, 0.0),
    ],
)
def test_the_delay_doubles_up_to_its_cap_and_is_jittered_in_full(retries_done, chance, delay_s):
    delay = next_delay_s(retries_done, max_retries=10_000, retry_after_s=None, remaining_s=60.0, chance=chance)
    assert delay == delay_s


@pytest.mark.parametrize(
    ("retries_done", "max_retries", "retry_after_s", "remaining_s", "delay_s"),
    [
        (0, 0, None, 60.0, None),  # no retry was allowed
        (2, 3, None, 60.0, 1.0),
        (10**6, None, None, 60.0, 8.0),  # the deadline alone decides
        (3, 3, None, 60.0, None),  # all used up
        (0, 3, 7.0, 60.0, 7.0),  # what the service asked for, not the backoff
        (0, 3, 7.0, 7.0, None),  # would begin when the deadline has passed
        (2, 3, None, 1.0, None),
        (2, 3, None, 1.01, 1.0),
        (0, 3, None, 0.0, None),
    ],
)
def test_no_retry_begins_after_the_deadline_or_beyond_the_number_allowed(
    retries_done, max_retries, retry_after_s, remaining_s, delay_s
):
    delay = next_delay_s(
        retries_done, max_retries=max_retries, retry_after_s=retry_after_s, remaining_s=remaining_s, chance=1.0
    )
    assert delay == delay_s


def test_a_retry_costs_five_tokens_and_a_success_brings_one_back():
    budget = RetryBudget()
    assert all(budget.take(ServiceUnavailable("busy")) for _ in range(100))
    assert not budget.take(ServiceUnavailable("busy"))
    for _ in range(4):
        budget.refund()
    assert not budget.take(ConnectionFailed("silent"))
    budget.refund()
    assert budget.take(ConnectionFailed("silent"))
    assert budget.tokens == 0


def test_a_retry_after_a_refused_connection_is_free():
    budget = RetryBudget()
    assert all(budget.take(ConnectionFailed("refused", connected=False)) for _ in range(1000))
    assert budget.tokens == 500


def test_the_retry_budget_never_grows_beyond_500_tokens():
    budget = RetryBudget()
    budget.refund()
    assert budget.tokens == 500


@pytest.mark.parametrize(
    ("probes_done", "chance", "delay_s"), [(0, 1.0, 0.25), (0, 0.0, 0.125), (3, 1.0, 2.0), (5000, 0.0, 1.0)]
)
def test_probes_come_slower_up_to_every_two_seconds(probes_done, chance, delay_s):
    assert probe_delay_s(probes_done, chance) == delay_s


def test_one_in_twenty_requests_may_be_hedged():
    budget = HedgeBudget()
    hedges = 0
    for _ in range(1000):
        budget.add_request()
        hedges += budget.take()
    assert hedges == 50


def test_no_more_than_ten_hedges_are_saved_up():
    budget = HedgeBudget()
    for _ in range(10_000):
        budget.add_request()
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]


def test_a_hedge_waits_for_twice_the_median_of_at_least_ten_times():
    budget = HedgeBudget()
    for _ in range(9):
        budget.add_time(1.0)
    assert budget.delay_s is None
    budget.add_time(9.0)
    assert budget.delay_s == 2.0
