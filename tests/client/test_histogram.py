from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from plaudit_client.histogram import Histogram

numbers = st.floats(min_value=-1e9, max_value=1e9)


def test_nothing_counted_is_nothing_drawn():
    assert Histogram(("a",)).render() == []


def test_the_bins_widen_until_all_numbers_fit():
    histogram = Histogram(("a",), max_bins=4)
    for value in (0.0, 1.0, 2.0, 3.0, 3.5):
        histogram.add(0, value)
    assert histogram.bins() == [(0.0, [1]), (1.0, [1]), (2.0, [1]), (3.0, [2])]
    histogram.add(0, -1.0)
    assert histogram.bins() == [(-2.0, [1]), (0.0, [2]), (2.0, [3])]


def test_each_series_has_a_bar_and_a_count_in_every_line():
    histogram = Histogram(("chosen", "rejected"), max_bins=2)
    for series, value in ((0, 1.0), (0, 1.5), (1, 0.0)):
        histogram.add(series, value)
    head, low, high = [line.split() for line in histogram.render()]
    assert head == ["score", "from", "chosen", "count", "rejected", "count"]
    assert low == ["0", "0", "#" * 12, "1"]
    assert high == ["1", "#" * 24, "2", "0"]


@given(st.lists(st.tuples(st.integers(0, 1), numbers), min_size=1), st.integers(2, 30))
def test_no_number_is_lost_whatever_comes_and_the_bins_stay_few(pairs, max_bins):
    histogram = Histogram(("a", "b"), max_bins=max_bins)
    for series, value in pairs:
        histogram.add(series, value)
    bins = histogram.bins()
    edges = [edge for edge, _ in bins]
    width = edges[1] - edges[0] if len(edges) > 1 else None
    assert len(bins) <= max_bins
    assert [sum(counts[series] for _, counts in bins) for series in (0, 1)] == [
        Counter(series for series, _ in pairs)[series] for series in (0, 1)
    ]
    if width is not None:
        assert all(edges[0] <= value < edges[-1] + width for _, value in pairs)
