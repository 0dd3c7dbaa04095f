import math

import pytest
import torch

from plaudit_ppo.algorithm.rewards import compute_rewards
from plaudit_ppo.algorithm.step_rewards import add_step_rewards, rule_step_scores

# Row 0 ends with EOS, row 1 is cut behind its second step, row 2 is cut and has one step without a score.
SCORES = torch.tensor([[0.0, 0.9, 0.0, 0.4, 0.0], [0.8, 0.0, 0.3, 0.0, 0.0], [0.0, 0.5, 0.0, math.nan, 0.0]])
ENDS = torch.tensor(
    [[False, True, False, True, False], [True, False, True, False, False], [False, True, False, True, False]]
)
FINISHED = torch.tensor([True, False, False])


@pytest.mark.parametrize(("rule", "last"), [("replace", -1.0), ("subtract", -0.2), ("off", 0.3)])
def test_a_missing_eos_changes_the_last_step_alone_and_no_failure(rule, last):
    ruled = rule_step_scores(SCORES, ENDS, FINISHED, rule=rule, score=-1.0, penalty=0.5, limit=None)
    torch.testing.assert_close(ruled[0], SCORES[0])
    torch.testing.assert_close(ruled[1], torch.tensor([0.8, 0.0, last, 0.0, 0.0]))
    assert ruled[2, 1] == 0.5
    assert math.isnan(ruled[2, 3])


def test_each_step_is_clipped_behind_the_rule():
    ruled = rule_step_scores(SCORES, ENDS, FINISHED, rule="replace", score=-3.0, penalty=0.5, limit=0.6)
    torch.testing.assert_close(ruled[:2], torch.tensor([[0.0, 0.6, 0.0, 0.4, 0.0], [0.6, 0.0, -0.6, 0.0, 0.0]]))


def test_the_score_of_a_step_is_the_reward_of_the_token_that_ends_it():
    """By hand: r = [-0.1, -0.1 + 0.9, -0.1, -0.1 + 0.4 + 2], nothing on padding."""
    mask = torch.tensor([[True, True, True, True, False], [False] * 5])
    rewards = compute_rewards(torch.full((2, 5), 0.1), torch.tensor([2.0, math.nan]), mask)
    added = add_step_rewards(rewards, torch.stack([SCORES[0], SCORES[2]]), mask)
    torch.testing.assert_close(added, torch.tensor([[-0.1, 0.8, -0.1, 2.3, 0.0], [0.0] * 5]))
