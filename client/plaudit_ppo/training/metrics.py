"""The metrics of a run: their names, and how those about rollouts are computed, as means under the mask."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit_ppo.scoring.items import Item, completion_of, prompt_of
from plaudit_ppo.training.experience import Experience

MAX_SAMPLE_CHARS = 2_000

METRICS = {
    "iteration": "counted from 1",
    "episode": "rollouts sampled so far",
    "lr": "learning rate of the policy in this iteration",
    "objective/kl": "sum over tokens of logprob - ref_logprob, mean over rollouts; nats",
    "objective/kl_coef": "beta in this iteration",
    "objective/entropy": "sum over tokens of -logprob, mean over rollouts; nats",
    "objective/non_score_reward": "sum over tokens of -beta * KL estimate, mean over rollouts",
    "objective/scores": "score after the missing-EOS rule and the clip, mean over rollouts",
    "objective/rlhf_reward": "objective/scores + objective/non_score_reward",
    "policy/approxkl_avg": "0.5 * (logprob - old_logprob)^2, mean over tokens of all minibatches",
    "policy/clipfrac_avg": "share of tokens whose policy loss is the clipped one",
    "policy/entropy_avg": "entropy of the policy's distribution, mean over tokens of all minibatches; nats",
    "loss/policy_avg": "clipped policy loss, mean over tokens of all minibatches",
    "loss/value_avg": "clipped value loss before value_coef, mean over tokens of all minibatches",
    "loss/kl_avg": "k2 estimate of the KL to the reference before kl_loss_coef, mean over tokens of all minibatches",
    "val/clipfrac_avg": "share of tokens whose value loss is the clipped one",
    "val/ratio": "probability ratio, mean over tokens of all minibatches",
    "val/ratio_var": "its variance over the same tokens",
    "val/num_eos_tokens": "rollouts that end with EOS",
    "val/explained_variance": "1 - var(returns - values) / var(returns), values before the update",
    "val/sampling_ratio_error": "largest |ratio - 1| between the generating and the training forward",
    "val/eos_share": "share of rollouts that end with EOS",
    "scoring/score_mean": "what the scorer answered, mean over rollouts",
    "scoring/score_std": "its standard deviation over rollouts",
    "scoring/masked_share": "share of rollouts without a score; they are out of every other metric",
    "scoring/call_s": "seconds that the calls to the scorer took, added up",
    "scoring/exposed_wait_s": "seconds that training stood still for scores, those of the evaluation scorer included",
    "scoring/retries": "requests that the client had to repeat; null for a scorer that does not count them",
    "eval/scores": "score of the evaluation scorer, never trained on, mean over the rollouts that it scored",
    "tokens/prompt": "prompt tokens",
    "tokens/completion": "completion tokens, with EOS",
    "tokens/completion_mean": "length of a completion, with EOS, mean over rollouts",
    "tokens/completion_p95": "its 95th percentile",
    "time/generate_s": "seconds for generation",
    "time/update_s": "seconds for the update",
    "time/iteration_s": "seconds for the whole iteration",
}


def masked_mean(values: Tensor, mask: Tensor) -> float | None:
    """Mean over the entries where the mask is True; None if there are none."""
    return float(values[mask].mean()) if mask.any() else None


def rollout_metrics(experience: Experience, raw_scores: Tensor, *, kl_coef: float) -> dict[str, float | None]:
    """The metrics that are known before the update, over the rollouts that have a score.

    Args:
        experience: B rollouts.
        raw_scores: shape (B,), float32, as the scorer gave them, NaN where it failed.
        kl_coef: beta of this iteration.
    """
    mask, scored = experience.mask, ~raw_scores.isnan()
    kl, lengths = experience.kl.sum(1), mask.sum(1).float()
    scores = masked_mean(experience.scores, scored)
    non_score = masked_mean(-experience.kl_penalty.sum(1), scored)
    return {
        "objective/kl": masked_mean(kl, scored),
        "objective/kl_coef": kl_coef,
        "objective/entropy": masked_mean(-experience.old_logprobs.where(mask, 0.0).sum(1), scored),
        "objective/non_score_reward": non_score,
        "objective/scores": scores,
        "objective/rlhf_reward": None if scores is None or non_score is None else scores + non_score,
        "val/num_eos_tokens": int((experience.rollouts.finished & scored).sum()),
        "val/eos_share": masked_mean(experience.rollouts.finished.float(), scored),
        "val/explained_variance": explained_variance(experience.old_values, experience.returns, mask),
        "scoring/score_mean": masked_mean(raw_scores, scored),
        "scoring/score_std": float(raw_scores[scored].std(unbiased=False)) if scored.any() else None,
        "scoring/masked_share": float((~scored).float().mean()),
        "tokens/prompt": int(experience.rollouts.prompt_mask[scored].sum()),
        "tokens/completion": int(mask.sum()),
        "tokens/completion_mean": masked_mean(lengths, scored),
        "tokens/completion_p95": float(lengths[scored].quantile(0.95)) if scored.any() else None,
    }


def sample_rows(
    prompt_indices: Sequence[int],
    items: Sequence[Item],
    lengths: Sequence[int],
    experience: Experience,
    raw_scores: Tensor,
    *,
    limit: int,
    columns: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """The first rollouts of a batch as rows of a table: prompt, completion, score, KL.

    Of a prompt the last, of a completion the first `MAX_SAMPLE_CHARS` are kept.

    Args:
        prompt_indices: B places in the list of prompts, counted from 0.
        items: B rollouts as the scorer got them.
        lengths: of the B completions in tokens, which the mask of one without a score no longer tells.
        experience: the B rollouts.
        raw_scores: shape (B,), float32, as the scorer gave them, NaN where it failed.
        limit: how many rows at most.
        columns: what else the row of each prompt holds; what is long is cut.
    """
    kl = experience.kl.sum(1).where(experience.mask.any(1), float("nan"))
    return [
        {
            "prompt": prompt_indices[row],
            "prompt_text": prompt_of(items[row])[-MAX_SAMPLE_CHARS:],
            "completion": completion_of(items[row])[:MAX_SAMPLE_CHARS],
            "finished": bool(experience.rollouts.finished[row]),
            "num_tokens": lengths[row],
            "score": float(raw_scores[row]),
            "kl": float(kl[row]),
            **_columns(columns[row] if columns else {}),
        }
        for row in range(min(limit, len(items)))
    ]


def _columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {"columns": {name: _cut(value) for name, value in columns.items()}} if columns else {}


def _cut(value: Any) -> Any:
    """A value of a column; what is long, only from its beginning, as text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return value if len(text) <= MAX_SAMPLE_CHARS else text[:MAX_SAMPLE_CHARS]


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float | None:
    """How much of the returns' variance the critic explains; None where they do not vary.

    1 - var(R - V) / var(R), biased variances over the real tokens.
    """
    real = returns[mask]
    variance = float(real.var(unbiased=False)) if len(real) else 0.0
    return 1 - float((real - values[mask]).var(unbiased=False)) / variance if variance > 0 else None


def sampling_ratio_error(sampled_logprobs: Tensor, logprobs: Tensor, mask: Tensor) -> float:
    """Largest |exp(logprob - sampled_logprob) - 1|: generating and training forward have to be the same model."""
    return float(torch.expm1(logprobs - sampled_logprobs).where(mask, 0.0).abs().max())
