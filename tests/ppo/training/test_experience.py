import math

import pytest
import torch

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.rollout.forward import PAD_LOGPROB
from plaudit_ppo.rollout.rollouts import Rollouts
from plaudit_ppo.training.experience import StepScores, make_experience


@pytest.fixture
def rollouts():
    """Row 0 ends with EOS after two tokens, row 1 is cut after three, row 2 gets no score."""
    mask = torch.tensor([[True, True, False], [True, True, True], [True, True, False]])
    return Rollouts(
        prompt_ids=torch.tensor([[2], [3], [4]]),
        prompt_mask=torch.ones(3, 1, dtype=torch.bool),
        completion_ids=torch.tensor([[5, 0, 1], [6, 7, 8], [9, 10, 1]]),
        completion_mask=mask,
        finished=torch.tensor([True, False, False]),
        sampled_logprobs=torch.zeros(3, 3),
    )


@pytest.fixture
def make(rollouts):
    def make(**settings):
        return make_experience(
            rollouts,
            torch.tensor([2.0, 7.0, math.nan]),
            logprobs=torch.full((3, 3), -1.0),
            ref_logprobs=torch.full((3, 3), -1.5),
            values=torch.full((3, 3), 0.5),
            kl_coef=0.1,
            config=PPOConfig(**settings),
        )

    return make


def test_a_rollout_without_a_score_is_out_of_the_mask_and_has_no_number(make):
    """Detail 10: also when it has no EOS; no rule turns the failure into a number."""
    experience = make()
    assert experience.mask.tolist() == [[True, True, False], [True, True, True], [False, False, False]]
    assert experience.scores[:2].tolist() == [2.0, -1.0]
    assert math.isnan(experience.scores[2])
    for tensor in (experience.rewards, experience.advantages, experience.returns, experience.kl):
        assert tensor[2].tolist() == [0.0, 0.0, 0.0]


def test_padding_has_one_constant_as_logprob_and_0_as_value(make):
    """Detail 17: ratio 1 and KL 0 on padding, values 0 after the end."""
    experience = make()
    padding = ~experience.mask
    assert experience.old_logprobs[padding].unique().tolist() == [PAD_LOGPROB]
    assert experience.ref_logprobs[padding].unique().tolist() == [PAD_LOGPROB]
    assert not experience.kl[padding].any()
    assert not experience.old_values[padding].any()


def test_returns_are_made_of_advantages_before_whitening(make):
    """Detail 16, by hand: row 0 has r = [-0.05, 1.95], d = [-0.05, 1.45], A = [-0.05 + 0.95 * 1.45, 1.45]."""
    experience = make()
    assert experience.rewards[0].tolist() == pytest.approx([-0.05, 1.95, 0.0])
    assert experience.returns[0].tolist() == pytest.approx([1.3275 + 0.5, 1.95, 0.0])
    real = experience.advantages[experience.mask]
    assert real.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert real.var(unbiased=False).item() == pytest.approx(1.0, abs=1e-5)


def test_whitening_per_minibatch_leaves_the_batch_alone(make):
    """Detail 16: O19's variant."""
    experience = make(whiten_advantages="minibatch")
    assert experience.advantages[0].tolist() == pytest.approx([1.3275, 1.45, 0.0])


def test_the_rule_for_a_missing_eos_is_a_setting(make):
    """Detail 9."""
    assert make(missing_eos="off").scores[1] == 7.0
    assert make(missing_eos="subtract", missing_eos_penalty=2.0).scores[1] == 5.0
    assert make(missing_eos_score=-3.0).scores[1] == -3.0


def test_selected_rows_keep_their_numbers(make):
    experience = make()
    part = experience.select(torch.tensor([0]))
    assert part.rewards.tolist() == [experience.rewards[0, :2].tolist()]
    assert part.mask.tolist() == [[True, True]]


def test_the_penalty_is_made_of_the_estimate_of_the_setting(make):
    """Detail 12: k1 = -1 - -1.5 = 0.5; k3 = exp(-0.5) - 1 + 0.5."""
    assert make().kl_penalty[0].tolist() == pytest.approx([0.05, 0.05, 0.0])
    k3 = 0.1 * (math.exp(-0.5) - 0.5)
    experience = make(kl_estimator="k3")
    assert experience.kl_penalty[0].tolist() == pytest.approx([k3, k3, 0.0])
    assert experience.rewards[0].tolist() == pytest.approx([-k3, 2.0 - k3, 0.0])
    assert experience.kl[0].tolist() == [0.5, 0.5, 0.0]  # what is logged stays k1


def test_scores_are_clipped_after_the_rule_for_a_missing_eos(make):
    """Detail 10: replaced by -3, then clipped to -1.5; the other one from 2 to 1.5."""
    assert make(score_clip=1.5, missing_eos_score=-3.0).scores[:2].tolist() == [1.5, -1.5]
    assert make(score_clip=1.5, missing_eos_score=-3.0).scores[2].isnan()


def test_the_penalty_for_length_comes_after_the_rule_for_a_missing_eos_and_the_clip(make):
    """Details 10 and 33: of at most 3 tokens, over the last 2: 2 tokens lose 0.5 of the penalty, 3 all of it."""
    settings = {"max_completion_tokens": 3, "overlong_buffer_tokens": 2}
    assert make(**settings).scores[:2].tolist() == [1.5, -2.0]
    assert make(**settings, overlong_penalty=3.0, score_clip=1.0).scores[:2].tolist() == [1.0 - 1.5, -1.0 - 3.0]
    assert make(**settings).scores[2].isnan()
    assert make(max_completion_tokens=3).scores[:2].tolist() == [2.0, -1.0]


def test_whitened_rewards_keep_their_mean_and_have_variance_1(make):
    """Detail 14: over the five real tokens, without mean shift; off by default."""
    plain, whitened = make(), make(whiten_rewards=True)
    before, after = plain.rewards[plain.mask], whitened.rewards[whitened.mask]
    assert after.mean().item() == pytest.approx(before.mean().item(), abs=1e-6)
    assert after.var(unbiased=False).item() == pytest.approx(1.0, abs=1e-4)
    assert before.var(unbiased=False).item() < 0.99 or before.var(unbiased=False).item() > 1.01
    assert not whitened.rewards[~whitened.mask].any()


def test_steps_are_rewarded_at_their_tokens_and_a_rollout_is_worth_their_sum(rollouts):
    """Detail 39, by hand: without KL, row 0 has two scores, row 1 the missing EOS at its last step, row 2 lacks one."""
    scores = torch.tensor([[0.5, 0.25, 0.0], [0.75, 0.0, 0.5], [math.nan, 0.5, 0.0]])
    ends = torch.tensor([[True, True, False], [True, False, True], [True, True, False]])
    experience = make_experience(
        rollouts,
        torch.tensor([0.25, 0.5, 0.5]),
        logprobs=torch.zeros(3, 3),
        ref_logprobs=torch.zeros(3, 3),
        values=torch.zeros(3, 3),
        kl_coef=0.1,
        config=PPOConfig(reward_along="steps", gamma=1.0, gae_lambda=1.0, missing_eos_score=-2.0),
        step_scores=StepScores(scores, ends),
    )
    assert experience.rewards.tolist() == [[0.5, 0.25, 0.0], [0.75, 0.0, -2.0], [0.0, 0.0, 0.0]]
    assert experience.returns.tolist() == [[0.75, 0.25, 0.0], [-1.25, -2.0, -2.0], [0.0, 0.0, 0.0]]
    assert experience.scores[:2].tolist() == [0.75, -1.25]
    assert experience.scores[2].isnan()
    assert not experience.mask[2].any()
