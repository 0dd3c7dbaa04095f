import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_export.checks.comparison import Comparison, kendall, pair_agreement, spearman

scores = st.lists(st.integers(-3, 3), min_size=2, max_size=12)


def floats(values):
    return np.array(values, dtype=np.float64)


def test_agreement_counts_the_pairs_that_are_ranked_alike():
    # Of the pairs 01 02 03 12 13 23 12 and 13 are swapped, and 23 ties: 3 of 6.
    assert pair_agreement(floats([0, 1, 2, 3]), floats([0, 5, 4, 4])) == 0.5


def test_a_pair_that_ties_in_float32_counts_for_nothing():
    assert pair_agreement(floats([1, 1, 2]), floats([5, 0, 9])) == 1.0
    assert pair_agreement(floats([1, 1]), floats([0, 1])) == 1.0


@given(st.data(), scores)
def test_agreement_and_kendall_are_those_of_the_slow_loop(data, first):
    second = data.draw(st.lists(st.integers(-3, 3), min_size=len(first), max_size=len(first)))
    signs = [
        (np.sign(first[a] - first[b]), np.sign(second[a] - second[b])) for a in range(len(first)) for b in range(a)
    ]
    untied = [one == other for one, other in signs if one]
    assert pair_agreement(floats(first), floats(second)) == (sum(untied) / len(untied) if untied else 1.0)
    lengths = [sum(abs(pair[side]) for pair in signs) for side in (0, 1)]
    if all(lengths):
        expected = sum(one * other for one, other in signs) / (lengths[0] * lengths[1]) ** 0.5
        assert kendall(floats(first), floats(second)) == pytest.approx(expected)


def test_spearman_is_the_correlation_of_ranks_and_ties_share_theirs():
    assert spearman(floats([1, 2, 3]), floats([10, 20, 900])) == pytest.approx(1)
    assert spearman(floats([1, 2, 3]), floats([3, 2, 1])) == pytest.approx(-1)
    # Ranks 0, 1.5, 1.5, 3 and 0, 1, 2, 3: covariance 4.5 / sqrt(4.5 * 5).
    assert spearman(floats([1, 2, 2, 3]), floats([1, 2, 3, 4])) == pytest.approx(4.5 / 22.5**0.5)


@pytest.mark.parametrize("correlation", [spearman, kendall])
def test_scores_that_are_all_equal_correlate_with_nothing_but_themselves(correlation):
    assert correlation(floats([1, 1]), floats([2, 2])) == 1.0
    assert correlation(floats([1, 1]), floats([1, 2])) == 0.0


def test_a_person_reads_what_it_was_measured_on():
    figures = {"max_abs_diff": 0.25, "mean_abs_diff": 0.125, "score_std": 0.5, "spearman": 0.99, "kendall": 0.9}
    sizes = {"size_bytes": 10, "size_ratio": 0.5, "speed_ratio": 1.75, "left_in_float": "1 of 9"}
    text = Comparison(num_texts=8, held_out=False, pair_agreement=0.985, **figures, **sizes).describe()
    for fact in (
        "8 texts, the ones that it was calibrated on",
        "98.50%",
        "0.9900",
        "1.75 x the speed",
        "0.50 x the size",
    ):
        assert fact in text
