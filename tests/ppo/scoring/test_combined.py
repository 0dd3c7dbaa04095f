import threading

import pytest

from plaudit_client import Score
from plaudit_client.testing import FakeScorer
from plaudit_ppo.scoring.combined import CombinedScorer, combine

LENGTH = FakeScorer(lambda item: float(len(item["text"])), fingerprint="sha256:length")
VOWELS = FakeScorer(lambda item: float(item["text"].count("a")), fingerprint="sha256:vowels")


@pytest.mark.parametrize(
    ("combination", "expected"),
    [("sum", 6.0), ("mean", 2.0), ("min", 0.0), ("mean_minus_std", 2.0 - 0.5 * (8 / 3) ** 0.5)],
)
def test_weighted_scores_become_one_by_hand(combination, expected):
    """Detail 28: ensembles by mean, minimum, or mean - k * std; x = [4, 2, 0], biased std sqrt(8 / 3)."""
    assert combine([4.0, 2.0, 0.0], combination=combination, std_coef=0.5) == pytest.approx(expected)


def test_each_scorer_has_its_weight():
    scores = CombinedScorer([LENGTH, VOWELS], [0.5, -1.0])([{"text": "banana"}, {"text": "no"}])
    assert scores.floats == [0.0, 1.0]
    assert scores.fingerprint == "sha256:length + sha256:vowels"


def test_one_scorer_without_a_score_leaves_the_rollout_without_one():
    """Details 10 and 28: no combination makes a number of a failure."""
    broken = FakeScorer(lambda item: "too_long" if item["text"] == "no" else 1.0)
    for combination in ("sum", "mean", "min", "mean_minus_std"):
        result = CombinedScorer([LENGTH, broken], combination=combination)([{"text": "no"}, {"text": "yes"}])
        assert [score.status for score in result] == ["failed", "ok"]
        assert result[0].detail == "scorer 1: too_long"


def test_scorers_are_asked_at_the_same_time():
    together = threading.Barrier(2)

    def scorer(items):
        together.wait(10)
        return [Score("ok", 1.0)] * len(items)

    assert CombinedScorer([scorer, scorer])([{"text": "a"}]).floats == [2.0]


def test_a_missing_weight_and_an_answer_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match="1 weights for 2 scorers"):
        CombinedScorer([LENGTH, VOWELS], [1.0])
    with pytest.raises(ValueError, match="scorer 1: 0 results for 1 completions"):
        CombinedScorer([LENGTH, lambda items: []])([{"text": "a"}])


def test_a_scorer_that_tells_no_fingerprint_and_counts_no_retries_leaves_them_open():
    combined = CombinedScorer([LENGTH, lambda items: [Score("ok", 1.0)]])
    assert combined([{"text": "a"}]).fingerprint is None
    assert combined.retries is None
