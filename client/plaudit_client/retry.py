"""When a failed attempt is repeated, and after how long.

Pure: no clock, no waiting, no network. Scoring is pure too, so repeating a request is always safe. One layer only:
nothing below or above it retries.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

RETRYABLE_STATUSES = frozenset({429, 500, 502, 503, 504})
BACKOFF_BASE_S = 0.25
BACKOFF_CAP_S = 8.0
MAX_RETRY_AFTER_S = 60.0


@dataclass(frozen=True)
class Timing:
    """Where time and chance come from; tests give their own, so that none of them sleeps.

    Attributes:
        clock: Seconds that only grow, whatever the wall clock does.
        sleep: Waits that many seconds.
        random: A number in [0, 1).
    """

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random


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
