import math

import pytest
import torch

from plaudit_ppo.training.held_out import (
    HELD_OUT_METRICS,
    as_list,
    as_tensor,
    best_evaluation,
    held_out_metrics,
    metrics_of,
    win_rate,
)

NAN = math.nan


def test_the_win_rate_by_hand():
    """Detail 38: two wins, a tie, a loss; what has no score on either side does not count."""
    start = torch.tensor([1.0, 2.0, 3.0, 4.0, NAN, 6.0])
    now = torch.tensor([1.5, 2.5, 3.0, 3.5, 9.0, NAN])
    assert win_rate(now, start) == (1 + 1 + 0.5 + 0) / 4
    assert win_rate(start, now) == (0 + 0 + 0.5 + 1) / 4
    assert win_rate(start, start) == 0.5
    assert win_rate(torch.tensor([NAN]), torch.tensor([1.0])) is None


def test_the_metrics_of_an_evaluation_by_hand():
    metrics = held_out_metrics(
        scores=torch.tensor([1.0, NAN, 4.0, 1.0]),
        eval_scores=torch.tensor([NAN, 2.0, 4.0, NAN]),
        start_scores=torch.tensor([2.0, 0.0, 3.0, 1.0]),
        kl=torch.tensor([0.0, 1.0, 2.0, 5.0]),
        lengths=torch.tensor([1, 2, 3, 4]),
        finished=torch.tensor([True, False, True, True]),
    )
    assert metrics == {
        "heldout/scores": 2.0,
        "heldout/eval_scores": 3.0,
        "heldout/win_rate": 0.5,
        "heldout/kl": 2.0,
        "heldout/tokens_mean": 2.5,
        "heldout/eos_share": 0.75,
        "heldout/masked_share": 0.25,
    }
    assert {*metrics, "time/heldout_s"} == set(HELD_OUT_METRICS)
    line = {"iteration": 3, **metrics, "time/heldout_s": 0.5, "scores": [1.0], "prompts_hash": "a"}
    assert metrics_of(line) == {"iteration": 3, **metrics, "time/heldout_s": 0.5}


def test_what_is_not_known_has_no_figure():
    one = {"kl": torch.zeros(1), "lengths": torch.ones(1), "finished": torch.tensor([True])}
    metrics = held_out_metrics(scores=torch.tensor([NAN]), eval_scores=None, start_scores=None, **one)
    assert [metrics[f"heldout/{name}"] for name in ("scores", "eval_scores", "win_rate")] == [None, None, None]
    assert metrics["heldout/masked_share"] == 1.0


@pytest.mark.parametrize(
    ("scores", "eval_scores", "best"),
    [
        ([9.0, 1.0, 3.0, 3.0, 2.0], [None] * 5, 2),  # the start does not count, and of equal ones the first does
        ([9.0, 1.0, 3.0, 3.0, 2.0], [0.0, 5.0, 4.0, 6.0, 5.0], 3),
        ([9.0, 1.0, 3.0, 3.0, 2.0], [0.0, None, 4.0, None, None], 2),
        ([9.0, None, None, None, None], [None] * 5, None),
    ],
)
def test_the_best_evaluation_is_that_of_the_evaluation_scorer_where_there_is_one(scores, eval_scores, best):
    """Detail 38."""
    lines = [
        {"iteration": number, "heldout/scores": one, "heldout/eval_scores": other}
        for number, (one, other) in enumerate(zip(scores, eval_scores, strict=True))
    ]
    found = best_evaluation(lines)
    assert (found and found["iteration"]) == best
    assert best_evaluation(lines[:1]) is None


def test_scores_are_kept_exactly_and_a_failure_as_none():
    scores = torch.tensor([0.1, NAN, -1e-30])
    assert as_list(scores)[1] is None
    assert torch.equal(as_tensor(as_list(scores))[[0, 2]], scores[[0, 2]])
