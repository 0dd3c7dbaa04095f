import pytest

from plaudit_client.retry import next_delay_s, parse_retry_after


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
