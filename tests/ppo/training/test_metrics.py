import math
from dataclasses import replace

import pytest
import torch

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.rollout.rollouts import Rollouts
from plaudit_ppo.training.experience import make_experience
from plaudit_ppo.training.metrics import explained_variance, group_std, masked_mean, rollout_metrics, sample_rows

MASK = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
RAW = torch.tensor([2.0, 7.0, math.nan])


@pytest.fixture
def experience():
    rollouts = Rollouts(
        prompt_ids=torch.tensor([[1, 2], [3, 3], [4, 4]]),
        prompt_mask=torch.tensor([[False, True], [True, True], [True, True]]),
        completion_ids=torch.tensor([[5, 0, 1], [6, 7, 8], [0, 1, 1]]),
        completion_mask=MASK,
        finished=torch.tensor([True, False, True]),
        sampled_logprobs=torch.zeros(3, 3),
    )
    logprobs = torch.tensor([[-1.0, -2.0, 9.0], [-3.0, -1.0, -1.0], [-50.0, 9.0, 9.0]])
    return make_experience(
        rollouts,
        RAW,
        logprobs=logprobs,
        ref_logprobs=logprobs - 0.5,
        values=torch.zeros(3, 3),
        kl_coef=0.1,
        config=PPOConfig(),
    )


def test_the_metrics_of_rollouts_by_hand(experience):
    """Detail 25: sums over real tokens, means over rollouts with a score; row 2 has none and is nowhere in them.

    KL: (2 * 0.5 + 3 * 0.5) / 2; entropy: ((1 + 2) + (3 + 1 + 1)) / 2; scores: (2 - 1) / 2, row 1 has no EOS.
    """
    metrics = rollout_metrics(experience, RAW, kl_coef=0.1)
    assert metrics["objective/kl"] == pytest.approx(1.25)
    assert metrics["objective/kl_coef"] == 0.1
    assert metrics["objective/entropy"] == pytest.approx(4.0)
    assert metrics["objective/non_score_reward"] == pytest.approx(-0.125)
    assert metrics["objective/scores"] == pytest.approx(0.5)
    assert metrics["objective/rlhf_reward"] == pytest.approx(0.375)
    assert metrics["val/num_eos_tokens"] == 1
    assert metrics["scoring/score_mean"] == pytest.approx(4.5)
    assert metrics["scoring/masked_share"] == pytest.approx(1 / 3)
    assert metrics["tokens/prompt"] == 3
    assert metrics["tokens/completion"] == 5


def test_length_eos_share_and_spread_of_the_scores_by_hand(experience):
    """Detail 26: over rows 0 (2 tokens, EOS, score 2) and 1 (3 tokens, cut, score 7)."""
    metrics = rollout_metrics(experience, RAW, kl_coef=0.1)
    assert metrics["tokens/completion_mean"] == 2.5
    assert metrics["tokens/completion_p95"] == pytest.approx(2.95)
    assert metrics["val/eos_share"] == 0.5
    assert metrics["scoring/score_std"] == 2.5


def test_how_far_the_sampler_is_from_the_training_forward_by_hand(experience):
    """Detail 29: over the five real tokens; r = exp(logprob - sampled logprob) is 1 but for 3 and 0.5.

    k3 = r - 1 - log r: (3 - 1 - log 3 + 0.5 - 1 + log 2) / 5. Row 2 has no score and is nowhere in them.
    """
    ratios = torch.tensor([[1.0, 3.0, 9.0], [1.0, 1.0, 0.5], [9.0, 9.0, 9.0]])
    old = experience.old_logprobs
    again = make_experience(
        replace(experience.rollouts, completion_mask=MASK, sampled_logprobs=old - ratios.log()),
        RAW,
        logprobs=old,
        ref_logprobs=old,
        values=old,
        kl_coef=0.1,
        config=PPOConfig(sampling_correction="token_truncate"),
    )
    metrics = rollout_metrics(again, RAW, kl_coef=0.1)
    assert metrics["val/sampling_kl"] == pytest.approx((1.5 - math.log(1.5)) / 5)
    assert metrics["val/sampling_log_ratio_max"] == pytest.approx(math.log(3))
    assert metrics["val/sampling_clipped_share"] == pytest.approx(0.2)
    assert metrics["val/sampling_weight_avg"] == pytest.approx((1 + 2 + 1 + 1 + 0.5) / 5)


def test_a_sample_has_prompt_completion_score_and_kl(experience):
    """Detail 26: the sample table."""
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    items = [{"prompt": "a", "completion": " b"}, {"messages": messages, "completions": ["c"]}, {}]
    rows = sample_rows([7, 8, 9], items, [2, 3, 1], experience, RAW, limit=2)
    assert [(row["prompt"], row["completion"], row["finished"], row["num_tokens"]) for row in rows] == [
        (7, " b", True, 2),
        (8, "c", False, 3),
    ]
    assert [row["prompt_text"] for row in rows] == ["a", "system: s\nuser: u"]
    assert [row["score"] for row in rows] == [2.0, 7.0]
    assert [row["kl"] for row in rows] == pytest.approx([1.0, 1.5])


def test_a_sample_without_a_score_has_its_length_and_no_kl(experience):
    """Detail 26: its tokens are out of every mask."""
    row = sample_rows([7, 8, 9], [{"prompt": "a", "completion": "b"}] * 3, [2, 3, 1], experience, RAW, limit=3)[2]
    assert row["num_tokens"] == 1
    assert math.isnan(row["score"])
    assert math.isnan(row["kl"])


def test_of_a_long_sample_the_end_of_the_prompt_and_the_start_of_the_completion_are_kept(experience):
    """Detail 26: the sample table is bounded."""
    item = {"prompt": "a" * 3_000 + "b", "completion": "c" + "d" * 3_000}
    (row,) = sample_rows([0], [item], [2], experience, RAW, limit=1)
    assert row["prompt_text"] == "a" * 1_999 + "b"
    assert row["completion"] == "c" + "d" * 1_999


def test_without_a_single_score_there_are_no_numbers(experience):
    """Detail 10: undefined is None, not 0."""
    nothing = torch.full((3,), math.nan)
    empty = make_experience(
        experience.rollouts,
        nothing,
        logprobs=experience.old_logprobs,
        ref_logprobs=experience.ref_logprobs,
        values=experience.old_values,
        kl_coef=0.1,
        config=PPOConfig(),
    )
    metrics = rollout_metrics(empty, nothing, kl_coef=0.1)
    undefined = ("objective/kl", "objective/scores", "objective/rlhf_reward", "scoring/score_mean")
    assert [metrics[name] for name in (*undefined, "val/explained_variance")] == [None] * 5
    assert metrics["scoring/masked_share"] == 1.0


def test_explained_variance_is_1_for_a_perfect_critic_and_0_for_a_constant_one():
    """Detail 25."""
    returns, mask = torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full((1, 3), 2.0), returns, mask) == 0.0
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)  # 1 - var([2, 6]) / var([1, 3])
    assert explained_variance(returns, torch.ones(1, 3), mask) is None


def test_the_spread_within_a_group_by_hand():
    """Detail 35: (1 + 3) / 2; a group with one score alone has no spread, and a single completion is no group."""
    scores = torch.tensor([1.0, 3.0, 5.0, math.nan, 4.0, 10.0])
    assert group_std(scores, 2) == pytest.approx((1.0 + 3.0) / 2)
    assert group_std(scores, 1) is None
    assert group_std(torch.full((4,), math.nan), 2) is None


def test_a_masked_mean_sees_only_what_is_kept():
    assert masked_mean(torch.tensor([1.0, 5.0, math.nan]), torch.tensor([True, True, False])) == 3.0
    assert masked_mean(torch.tensor([1.0]), torch.tensor([False])) is None
