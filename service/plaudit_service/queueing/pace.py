"""How fast a queue is worked off, from its last batches: pure. Knows neither clock nor queue."""

# The part that what was seen before keeps with each batch: about the last ten count.
_KEPT = 0.9


class Pace:
    """Tokens per second, as a quotient of fading sums, so that long batches count more than short ones."""

    def __init__(self) -> None:
        self._num_tokens = 0.0
        self._seconds = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Take in a batch: the tokens of its sequences, and the seconds that it kept the queue waiting."""
        self._num_tokens = _KEPT * self._num_tokens + num_tokens
        self._seconds = _KEPT * self._seconds + seconds

    def seconds_for(self, num_tokens: int) -> float:
        """Expected seconds to work off so many tokens; 0 before the first batch."""
        return self._seconds * num_tokens / self._num_tokens if self._num_tokens else 0.0
