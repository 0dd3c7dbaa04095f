import math

import pytest
import torch

from plaudit_ppo.algorithm.rewards import apply_missing_eos, clip_scores, compute_rewards, overlong_penalties

SCORES = torch.tensor([2.0, 3.0, math.nan, math.nan])
FINISHED = torch.tensor([True, False, True, False])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("replace", [2.0, -1.0, None, None]), ("subtract", [2.0, 2.5, None, None]), ("off", [2.0, 3.0, None, None])],
)
def test_a_missing_eos_replaces_or_lowers_a_score_and_never_makes_one_of_a_failure(rule, expected):
    """Detail 9, in the order of detail 10: a failed rollout without EOS stays masked."""
    scores = apply_missing_eos(SCORES, FINISHED, rule=rule, score=-1.0, penalty=0.5).tolist()
    assert [None if math.isnan(score) else score for score in scores] == expected


def test_scores_are_clipped_only_where_a_limit_is_set():
    """Detail 10: a failure stays a failure."""
    scores = torch.tensor([12.0, -11.0, 3.0, math.nan])
    assert clip_scores(scores, 10.0).tolist()[:3] == [10.0, -10.0, 3.0]
    assert math.isnan(clip_scores(scores, 10.0)[3])
    assert clip_scores(scores, None).tolist()[:3] == [12.0, -11.0, 3.0]


def test_a_completion_pays_for_the_last_tokens_before_the_limit_of_its_length():
    """Detail 33, by hand: L_max 10, L_cache 4, so from token 7 on a quarter of the penalty each."""
    lengths = torch.tensor([0, 6, 7, 8, 10])
    penalties = overlong_penalties(lengths, max_tokens=10, buffer_tokens=4, penalty=2.0)
    assert penalties.tolist() == [0.0, 0.0, -0.5, -1.0, -2.0]


def test_the_score_is_added_once_at_the_last_kept_token_for_both_endings():
    """Detail 11: the EOS is the last token (row 0); the last token before the cut is (row 1); never one later."""
    kl = torch.tensor([[0.5, -1.0, 2.0, 9.0], [1.0, 1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    rewards = compute_rewards(0.1 * kl, torch.tensor([10.0, 20.0]), mask)
    assert rewards[0].tolist() == pytest.approx([-0.05, 0.1, -0.2 + 10.0, 0.0])
    assert rewards[1].tolist() == pytest.approx([-0.1, -0.1, -0.1, -0.1 + 20.0])


def test_a_completion_of_nothing_but_eos_gets_its_score():
    """Detail 11."""
    mask = torch.tensor([[True, False]])
    assert compute_rewards(torch.zeros(1, 2), torch.tensor([3.0]), mask).tolist() == [[3.0, 0.0]]


def test_a_masked_rollout_has_no_reward():
    """Detail 10: NaN stays outside."""
    mask = torch.tensor([[False, False]])
    assert compute_rewards(torch.ones(1, 2), torch.tensor([math.nan]), mask).tolist() == [[0.0, 0.0]]
