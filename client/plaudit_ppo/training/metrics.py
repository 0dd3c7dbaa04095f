"""The metrics of a run: their names, and how those about rollouts are computed, as means under the mask."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit_ppo.algorithm.kl import kl_k3
from plaudit_ppo.scoring.items import Item, completion_of, prompt_of
from plaudit_ppo.training.experience import Experience

MAX_SAMPLE_CHARS = 2_000

METRICS = {
    "iteration": "counted from 1",
    "episode": "rollouts sampled so far",
    "lr": "learning rate of the policy in this iteration; 0 while the critic warms up",
    "objective/kl": "sum over tokens of logprob - ref_logprob, mean over rollouts; nats",
    "objective/kl_coef": "beta in this iteration",
    "objective/entropy": "sum over tokens of -logprob, mean over rollouts; nats",
    "objective/non_score_reward": "sum over tokens of -beta * KL estimate, mean over rollouts",
    "objective/scores": "score after the missing-EOS rule, the clip and the penalty for length, mean over rollouts",
    "objective/rlhf_reward": "objective/scores + objective/non_score_reward",
    "policy/approxkl_avg": "0.5 * (logprob - old_logprob)^2, mean over tokens of all minibatches",
    "policy/clipfrac_avg": "share of tokens whose policy loss is the clipped one",
    "policy/entropy_avg": "entropy of the policy's distribution, mean over tokens of all minibatches; nats",
    "loss/policy_avg": "clipped policy loss with its importance weights, mean over tokens of all minibatches",
    "loss/value_avg": "clipped value loss before value_coef, mean over tokens of all minibatches",
    "loss/kl_avg": "k2 estimate of the KL to the reference before kl_loss_coef, mean over tokens of all minibatches",
    "val/clipfrac_avg": "share of tokens whose value loss is the clipped one",
    "val/ratio": "probability ratio, mean over tokens of all minibatches",
    "val/ratio_var": "variance of that ratio over the same tokens",
    "val/num_eos_tokens": "rollouts that end with EOS",
    "val/explained_variance": "1 - var(returns - values) / var(returns), values before the update",
    "val/sampling_ratio_error": "largest |ratio - 1| between the generating and the training forward",
    "val/sampling_kl": "KL from the sampler's distribution to that of the training forward, estimate k3, mean over "
    "tokens; nats",
    "val/sampling_log_ratio_max": "largest |logprob - sampled logprob| of a token; nats",
    "val/sampling_clipped_share": "share of tokens whose importance weight was cut, or whose rollout it masked",
    "val/sampling_weight_avg": "importance weight of the policy loss, mean over tokens; 1 without sampling_correction",
    "val/eos_share": "share of rollouts that end with EOS",
    "sampler/canary_error": "largest |ratio - 1| between a vLLM server that has just loaded the weights and the "
    "training forward; null without vLLM servers",
    "sampler/retries": "requests to vLLM servers that were sent a second time; null without vLLM servers",
    "sampler/staleness": "how many iterations older than the policy the version that sampled is; 0 or 1",
    "scoring/score_mean": "what the scorer answered, mean over rollouts",
    "scoring/score_std": "standard deviation of that score over rollouts",
    "scoring/group_std": "standard deviation within a prompt's completions, mean over prompts; null for one completion",
    "scoring/masked_share": "share of rollouts without a score; every other metric leaves these rollouts out",
    "scoring/call_s": "seconds that the calls to the scorer took, added up",
    "scoring/exposed_wait_s": "seconds that training stood still for scores, those of the evaluation scorer included",
    "scoring/retries": "requests that the client had to repeat; null for a scorer that does not count retries",
    "eval/scores": "score of the evaluation scorer, never trained on, mean over the rollouts that it scored",
    "tokens/prompt": "prompt tokens",
    "tokens/completion": "completion tokens, with EOS",
    "tokens/completion_mean": "length of a completion, with EOS, mean over rollouts",
    "tokens/completion_p95": "95th percentile of that length",
    "time/publish_s": "seconds until every vLLM server had the weights and had passed the check",
    "time/generate_s": "seconds for generation, to the last completion",
    "time/generate_wait_s": "seconds that training stood still for completions; the rest of the generation ran during "
    "the update",
    "time/tokens_per_second": "completion tokens of all processes per second of generation",
    "time/update_s": "seconds for the update",
    "time/iteration_s": "seconds for the whole iteration",
}


def masked_mean(values: Tensor, mask: Tensor) -> float | None:
    """Mean over the entries where the mask is True; None if there are none."""
    return float(values[mask].mean()) if mask.any() else None


def rollout_metrics(
    experience: Experience, raw_scores: Tensor, *, kl_coef: float, group_size: int = 1
) -> dict[str, float | None]:
    """The metrics that are known before the update, over the rollouts that have a score.

    Args:
        experience: B rollouts.
        raw_scores: shape (B,), float32, as the scorer gave them, NaN where it failed.
        kl_coef: beta of this iteration.
        group_size: so many rollouts after the other have one prompt.
    """
    mask, scored = experience.mask, ~raw_scores.isnan()
    kl, lengths = experience.kl.sum(1), mask.sum(1).float()
    scores = masked_mean(experience.scores, scored)
    non_score = masked_mean(-experience.kl_penalty.sum(1), scored)
    off_sampler = experience.rollouts.sampled_logprobs - experience.old_logprobs  # (B, T)
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
        "val/sampling_kl": masked_mean(kl_k3(off_sampler), mask),
        "val/sampling_log_ratio_max": float(off_sampler[mask].abs().max()) if mask.any() else None,
        "val/sampling_clipped_share": masked_mean(experience.sampling_clipped.float(), mask),
        "val/sampling_weight_avg": masked_mean(experience.sampling_weights, mask),
        "scoring/score_mean": masked_mean(raw_scores, scored),
        "scoring/score_std": float(raw_scores[scored].std(unbiased=False)) if scored.any() else None,
        "scoring/group_std": group_std(raw_scores, group_size),
        "scoring/masked_share": float((~scored).float().mean()),
        "tokens/prompt": int(experience.rollouts.prompt_mask[scored].sum()),
        "tokens/completion": int(mask.sum()),
        "tokens/completion_mean": masked_mean(lengths, scored),
        "tokens/completion_p95": float(lengths[scored].quantile(0.95)) if scored.any() else None,
    }


def group_std(scores: Tensor, size: int) -> float | None:
    """Standard deviation of the scores of one prompt's completions, mean over the prompts with at least two scores.

    Args:
        scores: shape (B,), float32, NaN where scoring failed; groups one after the other.
        size: of a group.
    """
    groups = [group[~group.isnan()] for group in scores.split(size)]
    spreads = [group.std(unbiased=False) for group in groups if len(group) > 1]
    return float(sum(spreads) / len(spreads)) if spreads else None


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
