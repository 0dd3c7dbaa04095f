"""How the load tests' clients retry: the rule of the SDK (capped exponential backoff, full jitter), without its code.

The SDK is not used here, because the load generators have to be lean.
"""

BASE_S = 0.25
CAP_S = 8.0
LONGEST_RETRY_AFTER_S = 60.0


def backoff_s(attempt: int, retry_after: str | None, jitter: float) -> float:
    """Seconds to wait before the next attempt.

    Args:
        attempt: 0 after the first one.
        retry_after: The header, which is a least wait where it is a number of seconds up to 60.
        jitter: Uniform in [0, 1).
    """
    pause_s = jitter * min(CAP_S, BASE_S * 2**attempt)
    try:
        least_s = float(retry_after or 0)
    except ValueError:
        return pause_s
    return least_s + pause_s if 0 < least_s <= LONGEST_RETRY_AFTER_S else pause_s
