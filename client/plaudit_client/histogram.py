"""A histogram of numbers that come one by one, in memory that does not grow, for a terminal. Pure."""

import math
from collections.abc import Sequence

_FIRST_WIDTH = 2.0**-20
_BAR_CHARS = 24


class Histogram:
    """Counts of several series over shared bins.

    The bins are as narrow as `max_bins` allow: when the numbers need more, neighbours are joined and the width doubles.
    So the counts are exact, whatever comes.

    Args:
        names: Of the series.
        max_bins: How many bins there may be.
    """

    def __init__(self, names: Sequence[str], *, max_bins: int = 20) -> None:
        self._names = names
        self._max_bins = max_bins
        self._width = _FIRST_WIDTH
        self._counts: dict[int, list[int]] = {}

    def add(self, series: int, value: float) -> None:
        """Count a finite number."""
        index = math.floor(value / self._width)
        self._counts.setdefault(index, [0] * len(self._names))[series] += 1
        while max(self._counts) - min(self._counts) >= self._max_bins:
            self._widen()

    def bins(self) -> list[tuple[float, list[int]]]:
        """Lower edge and counts of each bin, from the least to the greatest, empty ones between them too."""
        if not self._counts:
            return []
        indices = range(min(self._counts), max(self._counts) + 1)
        return [(index * self._width, self._counts.get(index, [0] * len(self._names))) for index in indices]

    def render(self) -> list[str]:
        """Lines of text: a head, then one per bin with a bar and a count for each series."""
        bins = self.bins()
        if not bins:
            return []
        most = max(count for _, counts in bins for count in counts)
        cells = [f"{name:<{_BAR_CHARS}} {'count':>8}" for name in self._names]
        lines = [f"{'score from':>12}  {'  '.join(cells)}"]
        for edge, counts in bins:
            bars = [f"{'#' * math.ceil(_BAR_CHARS * count / most):<{_BAR_CHARS}} {count:>8}" for count in counts]
            lines.append(f"{edge:>12.6g}  {'  '.join(bars)}")
        return lines

    def _widen(self) -> None:
        joined: dict[int, list[int]] = {}
        for index, counts in self._counts.items():
            into = joined.setdefault(index // 2, [0] * len(self._names))
            for series, count in enumerate(counts):
                into[series] += count
        self._counts = joined
        self._width *= 2
