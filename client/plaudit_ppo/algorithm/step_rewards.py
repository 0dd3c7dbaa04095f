"""From scores of steps to rewards per token."""

import torch
from torch import Tensor

from plaudit_ppo.algorithm.rewards import apply_missing_eos, clip_scores


def rule_step_scores(
    step_scores: Tensor,
    step_mask: Tensor,
    finished: Tensor,
    *,
    rule: str,
    score: float,
    penalty: float,
    limit: float | None,
) -> Tensor:
    """Step scores after the rule for completions that were cut before an EOS, and cut to ±limit each.

    The rule is that of `apply_missing_eos`, of the last step of a completion without EOS, whose end nobody has seen.

    Args:
        step_scores: shape (B, T), float32, at the tokens that end a step; NaN where a step has none.
        step_mask: shape (B, T), bool, True at the tokens that end a step.
        finished: shape (B,), bool, True where the completion ends with EOS.
        rule: "replace", "subtract" or "off".
        score: what "replace" writes.
        penalty: what "subtract" takes off.
        limit: the largest absolute score of a step; None: any.

    Returns:
        shape (B, T), float32.
    """
    places = torch.arange(step_mask.shape[1], device=step_mask.device)
    last = step_mask & (places == torch.where(step_mask, places, -1).amax(1, keepdim=True))
    ruled = apply_missing_eos(step_scores, finished[:, None] | ~last, rule=rule, score=score, penalty=penalty)
    return clip_scores(ruled, limit)


def add_step_rewards(rewards: Tensor, step_scores: Tensor, completion_mask: Tensor) -> Tensor:
    """Per-token rewards with the score of each step at the policy's token that ends it.

    r[t] += sum of s[k] over the steps k that end at t.

    - Uesato et al. 2022, "Solving math word problems with process- and outcome-based feedback", arXiv 2211.14275: a
      reward model of steps in place of one of answers.
    - Lightman et al. 2023, "Let's verify step by step", arXiv 2305.20050, section 2: what a score is, the probability
      that a step is right, read at its last token.
    - Wang et al. 2024, "Math-Shepherd", arXiv 2312.08935, section 3.4: PPO that rewards each step at its end.

    Deviations: none of them has a rule for a missing EOS. Scores are taken as they come, so that a probability rewards
    each further step; what a step should be measured against is taken off at export (--normalize-on).

    Args:
        rewards: shape (B, T), float32, all else.
        step_scores: shape (B, T), float32, 0 where no step ends; not read where the mask is False.
        completion_mask: shape (B, T), bool.

    Returns:
        shape (B, T), float32.
    """
    return rewards + torch.where(completion_mask, step_scores, 0.0)
