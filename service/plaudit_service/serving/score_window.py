"""Statistics of the latest scores of one model, for gauges: drift, collapse, and whether length is what is rewarded."""

from collections import deque

import numpy as np

NUM_SCORES = 1024


class ScoreWindow:
    """The latest 1,024 scores with the lengths of their texts; every statistic is NaN while it is not defined."""

    def __init__(self) -> None:
        self._latest: deque[tuple[float, int]] = deque(maxlen=NUM_SCORES)

    def add(self, score: float, num_tokens: int) -> None:
        """Add a score, and let the oldest go."""
        self._latest.append((score, num_tokens))

    def mean(self) -> float:
        """Mean of the scores."""
        return float(np.mean(self._columns()[0])) if self._latest else float("nan")

    def std(self) -> float:
        """Standard deviation of the scores, of the population."""
        return float(np.std(self._columns()[0])) if self._latest else float("nan")

    def length_correlation(self) -> float:
        """Pearson correlation of score and number of tokens; NaN where one of them does not vary."""
        scores, lengths = self._columns()
        if len(self._latest) < 2 or np.ptp(scores) == 0 or np.ptp(lengths) == 0:
            return float("nan")
        return float(np.corrcoef(scores, lengths)[0, 1])

    def _columns(self) -> tuple[np.ndarray, np.ndarray]:
        pairs = np.array(self._latest, dtype=np.float64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]
