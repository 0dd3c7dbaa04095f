"""From scores (one per rollout) to rewards (one per token)."""

import torch
from torch import Tensor


def apply_missing_eos(scores: Tensor, finished: Tensor, *, rule: str, score: float, penalty: float) -> Tensor:
    """Scores after the rule for completions that were cut before an EOS.

    replace: score of the setting (Ziegler et al. 2019, and 2403.17031); subtract: s - penalty (TRL); off: s.
    A failed score is NaN and stays NaN: no rule turns a failure into a number.

    Args:
        scores: shape (B,), float32, NaN where scoring failed.
        finished: shape (B,), bool, True where the completion ends with EOS.
        rule: "replace", "subtract" or "off".
        score: what "replace" writes.
        penalty: what "subtract" takes off.

    Returns:
        shape (B,), float32.
    """
    if rule == "off":
        return scores
    changed = torch.full_like(scores, score) if rule == "replace" else scores - penalty
    return torch.where(finished | scores.isnan(), scores, changed)


def clip_scores(scores: Tensor, limit: float | None) -> Tensor:
    """Scores cut to ±limit; NaN stays NaN, and without a limit all stay.

    Zheng et al. 2023, "Secrets of RLHF in large language models, part I", section 5.3, arXiv 2307.04964.

    Args:
        scores: shape (B,), float32.
        limit: the largest absolute score.
    """
    return scores if limit is None else scores.clamp(-limit, limit)


def overlong_penalties(lengths: Tensor, *, max_tokens: int, buffer_tokens: int, penalty: float) -> Tensor:
    """What a completion's score loses for coming close to the limit of its length.

    p * clip((L_max - L_cache - |y|) / L_cache, -1, 0): nothing before the last L_cache tokens, then linear to -p.
    Yu et al. 2025 (DAPO), equation 13, arXiv 2503.14476, where p is 1.

    Args:
        lengths: shape (B,), int64, tokens of the completions, |y|.
        max_tokens: L_max, at which a completion is cut.
        buffer_tokens: L_cache, at least 1.
        penalty: p.

    Returns:
        shape (B,), float32, none positive.
    """
    return penalty * ((max_tokens - buffer_tokens - lengths) / buffer_tokens).clamp(-1.0, 0.0)


def compute_rewards(kl_penalty: Tensor, scores: Tensor, completion_mask: Tensor) -> Tensor:
    """Per-token rewards: a KL penalty everywhere, and the score once, at the last kept token.

    r[t] = -kl_penalty[t] + (score if t is the last real token else 0),  kl_penalty = beta * KL estimate.
    Ouyang et al. 2022, section 3.5, arXiv 2203.02155. Deviation from 2403.17031 and TRL, which put the score one index
    after the last token: the last token is the EOS, or the last one before the cut.

    Args:
        kl_penalty: shape (B, T), float32.
        scores: shape (B,), float32; not read where the mask is all False.
        completion_mask: shape (B, T), bool.

    Returns:
        shape (B, T), float32, 0 on padding.
    """
    last = completion_mask & ~torch.nn.functional.pad(completion_mask[:, 1:], (0, 1), value=False)
    penalty = torch.where(completion_mask, -kl_penalty, 0.0)
    return penalty + torch.where(last, scores[:, None], 0.0)
