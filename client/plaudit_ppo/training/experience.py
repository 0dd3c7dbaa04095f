"""What one update learns from: rollouts with old and reference logprobs, values, rewards, advantages and returns."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plaudit_ppo.algorithm.advantages import compute_gae, whiten
from plaudit_ppo.algorithm.correction import sampling_weights
from plaudit_ppo.algorithm.kl import kl_k1, kl_k3
from plaudit_ppo.algorithm.rewards import apply_missing_eos, clip_scores, compute_rewards, overlong_penalties
from plaudit_ppo.algorithm.step_rewards import add_step_rewards, rule_step_scores
from plaudit_ppo.config import PPOConfig
from plaudit_ppo.rollout.forward import PAD_LOGPROB
from plaudit_ppo.rollout.rollouts import Rollouts


@dataclass(frozen=True)
class StepScores:
    """The scores of the steps of B rollouts, at the tokens that end them.

    Attributes:
        scores: shape (B, T), float32, 0 where no step ends; NaN where a step has no score.
        mask: shape (B, T), bool, True where a step ends.
    """

    scores: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Experience:
    """B rollouts with all that is fixed before the update; a rollout without a score has a mask of all False.

    Attributes:
        rollouts: tokens and masks.
        scores: shape (B,), float32, after the missing-EOS rule, the clip and the penalty for length; NaN where scoring
            failed.
        old_logprobs: shape (B, T), float32, of the policy before the update, by the training forward.
        sampling_weights: shape (B, T), float32, of each token's policy loss, for what the sampler's logprobs differ.
        sampling_clipped: shape (B, T), bool, True where a weight was cut or a completion masked.
        ref_logprobs: shape (B, T), float32.
        old_values: shape (B, T), float32.
        kl: shape (B, T), float32, the k1 estimate.
        kl_penalty: shape (B, T), float32, beta times the estimate of the setting.
        rewards: shape (B, T), float32, whitened if the setting says so.
        advantages: shape (B, T), float32, whitened over the batch if the setting says so.
        returns: shape (B, T), float32, un-whitened advantages + values.
    """

    rollouts: Rollouts
    scores: Tensor
    old_logprobs: Tensor
    sampling_weights: Tensor
    sampling_clipped: Tensor
    ref_logprobs: Tensor
    old_values: Tensor
    kl: Tensor
    kl_penalty: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def mask(self) -> Tensor:
        """Shape (B, T), bool, True on the tokens that are learned from: one mask for policy and critic."""
        return self.rollouts.completion_mask

    def select(self, index: Tensor) -> "Experience":
        """The rows of `index`, without the columns that are padding in all of them."""
        rollouts = self.rollouts.select(index)
        T = rollouts.completion_ids.shape[1]
        return Experience(
            rollouts=rollouts,
            scores=self.scores[index],
            old_logprobs=self.old_logprobs[index][:, :T],
            sampling_weights=self.sampling_weights[index][:, :T],
            sampling_clipped=self.sampling_clipped[index][:, :T],
            ref_logprobs=self.ref_logprobs[index][:, :T],
            old_values=self.old_values[index][:, :T],
            kl=self.kl[index][:, :T],
            kl_penalty=self.kl_penalty[index][:, :T],
            rewards=self.rewards[index][:, :T],
            advantages=self.advantages[index][:, :T],
            returns=self.returns[index][:, :T],
        )


def make_experience(
    rollouts: Rollouts,
    scores: Tensor,
    *,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    values: Tensor,
    kl_coef: float,
    config: PPOConfig,
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    step_scores: StepScores | None = None,
) -> Experience:
    """From what the models and the scorer said to what the update needs.

    Order: failed scores masked → missing-EOS rule → clip → penalty for length → rewards → their whitening → advantages
    → returns → their whitening. The bundle's normalization has happened where the scores come from. Of scores of steps,
    rule and clip are of each step, a step without a score masks the rollout, and `scores` is what a rollout's steps got
    together.

    Args:
        rollouts: B rollouts.
        scores: shape (B,), float32, NaN where scoring failed.
        logprobs: shape (B, T), float32, of the policy.
        ref_logprobs: shape (B, T), float32, of the reference.
        values: shape (B, T), float32, of the critic.
        kl_coef: beta of this iteration.
        config: the settings of every step.
        total: sums a tensor over all processes.
        step_scores: of steps, in place of `scores`, where the scorer gives them.
    """
    if step_scores is not None:
        scores = scores.where(~step_scores.scores.isnan().any(1), torch.nan)
    mask = rollouts.completion_mask & ~scores.isnan()[:, None]
    rollouts = replace(rollouts, completion_mask=mask)
    logprobs = logprobs.where(mask, PAD_LOGPROB)
    ref_logprobs = ref_logprobs.where(mask, PAD_LOGPROB)
    values = values.where(mask, 0.0)
    weights, clipped = sampling_weights(
        logprobs,
        rollouts.sampled_logprobs,
        mask,
        correction=config.sampling_correction,
        limit=config.sampling_correction_max,
    )
    ruled = None
    if step_scores is None:
        scores = apply_missing_eos(
            scores,
            rollouts.finished,
            rule=config.missing_eos,
            score=config.missing_eos_score,
            penalty=config.missing_eos_penalty,
        )
        scores = clip_scores(scores, config.score_clip)
    else:
        ruled = rule_step_scores(
            step_scores.scores,
            step_scores.mask,
            rollouts.finished,
            rule=config.missing_eos,
            score=config.missing_eos_score,
            penalty=config.missing_eos_penalty,
            limit=config.score_clip,
        )
        scores = scores.where(scores.isnan(), 0.0)
    if config.overlong_buffer_tokens:
        scores = scores + overlong_penalties(
            mask.sum(1),
            max_tokens=config.max_completion_tokens,
            buffer_tokens=config.overlong_buffer_tokens,
            penalty=config.overlong_penalty,
        )
    kl = kl_k1(logprobs, ref_logprobs)
    kl_penalty = kl_coef * (kl if config.kl_estimator == "k1" else kl_k3(kl))
    rewards = compute_rewards(kl_penalty, scores, mask)
    if ruled is not None:
        rewards = add_step_rewards(rewards, ruled, mask)
        scores = scores + ruled.sum(1)
    anything = int(total(mask.sum())) > 0
    if config.whiten_rewards and anything:
        rewards = whiten(rewards, mask, shift_mean=False, total=total)
    advantages = compute_gae(rewards, values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda)
    returns = advantages + values
    if config.whiten_advantages == "batch" and anything:
        advantages = whiten(advantages, mask, total=total)
    return Experience(
        rollouts=rollouts,
        scores=scores,
        old_logprobs=logprobs,
        sampling_weights=weights,
        sampling_clipped=clipped,
        ref_logprobs=ref_logprobs,
        old_values=values,
        kl=kl,
        kl_penalty=kl_penalty,
        rewards=rewards,
        advantages=advantages,
        returns=returns,
    )
