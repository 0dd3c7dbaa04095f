"""When a failed attempt is repeated, after how long, and how many extra requests a client may make.

Pure: no clock, no waiting, no network. Scoring is pure too, so repeating a request is always safe. One layer only:
nothing below or above it retries.
"""

import asyncio
import random
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from plaudit_client.errors import ConnectionFailed, PlauditError

RETRYABLE_STATUSES = frozenset({429, 500, 502, 503, 504})
BACKOFF_BASE_S = 0.25
BACKOFF_CAP_S = 8.0
MAX_RETRY_AFTER_S = 60.0
PROBE_CAP_S = 2.0
RETRY_BUDGET_TOKENS = 500
RETRY_COST_TOKENS = 5
REQUESTS_PER_HEDGE = 20
_MAX_HEDGES_SAVED = 10
_MIN_TIMES = 10


@dataclass(frozen=True)
class Timing:
    """Where time and chance come from, and how long things last; tests give their own, so that none of them sleeps.

    Attributes:
        clock: Seconds that only grow, whatever the wall clock does.
        sleep: Waits that many seconds.
        random: A number in [0, 1).
        silence_s: After how long without an answer a replica is asked whether it lives.
        probe_timeout_s: Within what time it must say so.
        resolve_every_s: How often host names are looked up again.
        max_connection_age_s: Age at which a connection is replaced.
        mismatch_rest_s: How long a replica with another reward model is left in peace.
    """

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random
    silence_s: float = 5.0
    probe_timeout_s: float = 5.0
    resolve_every_s: float = 30.0
    max_connection_age_s: float = 30.0
    mismatch_rest_s: float = 30.0


def parse_retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header, or None where it has none that is obeyed: 0 < s <= 60.

    Its date form is not obeyed: the wall clocks of two machines differ.
    """
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0 < seconds <= MAX_RETRY_AFTER_S else None


def next_delay_s(
    retries_done: int, *, max_retries: int | None, retry_after_s: float | None, remaining_s: float, chance: float
) -> float | None:
    """How long to wait before the next attempt, or None to give up.

    Full jitter: delay = chance * min(cap, base * 2^retries_done).
    Brooker 2015, "Exponential Backoff And Jitter". Deviation: a usable Retry-After is obeyed to the second.

    Args:
        retries_done: Attempts after the first that have failed too.
        max_retries: How many there may be; None: any number.
        retry_after_s: What the service asked for, if it was usable.
        remaining_s: Time left until the total deadline.
        chance: A random number in [0, 1).

    Returns:
        Seconds, always less than `remaining_s`; None when no retry is left, or none would begin before the deadline.
    """
    if max_retries is not None and retries_done >= max_retries:
        return None
    # The exponent is bounded because 2.0**1024 overflows.
    backoff_s = chance * min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(retries_done, 32))
    delay_s = backoff_s if retry_after_s is None else retry_after_s
    return delay_s if delay_s < remaining_s else None


def probe_delay_s(probes_done: int, chance: float) -> float:
    """How long to wait before an ejected replica is probed again: 0.25 s, doubled up to 2 s, half of it jittered."""
    return (0.5 + chance / 2) * min(PROBE_CAP_S, BACKOFF_BASE_S * 2.0 ** min(probes_done, 32))


class RetryBudget:
    """How much a client may retry: retries cost tokens, successes bring some back.

    So a service that fails for everybody is not flooded by its own clients. 500 tokens, 5 for a retry, 1 back for a
    success (AWS SDKs, "retry quota"). Deviation: a retry after a refused connection is free, because nothing reached
    a service, and the replica is out of use until a probe finds it ready.
    """

    def __init__(self) -> None:
        self.tokens = RETRY_BUDGET_TOKENS

    def take(self, failure: PlauditError) -> bool:
        """Pay for a retry after `failure`; False: it may not be made."""
        if isinstance(failure, ConnectionFailed) and not failure.connected:
            return True
        if self.tokens < RETRY_COST_TOKENS:
            return False
        self.tokens -= RETRY_COST_TOKENS
        return True

    def refund(self) -> None:
        """A request succeeded."""
        self.tokens = min(RETRY_BUDGET_TOKENS, self.tokens + 1)


class HedgeBudget:
    """When a request is sent a second time although the first has not failed, and how often in all.

    After twice the median of the last 100 answer times, and for at most 5 % of all requests (Dean and Barroso 2013,
    "The Tail at Scale"; deviation: the median, because where one of a few replicas is slow, the 95th percentile is its
    time).
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._times_s: deque[float] = deque(maxlen=100)

    def add_request(self) -> None:
        """A request begins: every twentieth allows one hedge."""
        self.tokens = min(_MAX_HEDGES_SAVED * REQUESTS_PER_HEDGE, self.tokens + 1)

    def add_time(self, seconds: float) -> None:
        """An attempt was answered after so long."""
        self._times_s.append(seconds)

    @property
    def delay_s(self) -> float | None:
        """How long to wait for the first answer; None while too few times are known."""
        return 2 * statistics.median(self._times_s) if len(self._times_s) >= _MIN_TIMES else None

    def take(self) -> bool:
        """Pay for a hedge; False: it may not be made."""
        if self.tokens < REQUESTS_PER_HEDGE:
            return False
        self.tokens -= REQUESTS_PER_HEDGE
        return True
