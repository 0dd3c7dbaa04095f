"""Importance correction, where who sampled gave the tokens other probabilities than the training forward does.

Three policies: the one that sampled (behaviour), the training forward of the same weights (proximal, `old_logprobs`),
and the one that is trained. PPO's ratio and clip are between the last two; what is here is between the first two.
"""

import torch
from torch import Tensor


def sampling_weights(
    old_logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor, *, correction: str, limit: float
) -> tuple[Tensor, Tensor]:
    """What the policy loss of each token is multiplied by, a constant to the gradient.

    token_truncate: w[t] = min(r[t], C),  r[t] = exp(old_logprob - sampled_logprob).
    sequence_mask: W = prod_t r[t], over the whole completion; w[t] = W if W <= C, else 0.
    none: w[t] = 1.

    Hilton et al. 2022, section 3, arXiv 2110.00641 (three policies). token_truncate: Yao et al. 2025, "Your efficient
    RL framework secretly brings you off-policy RL training". sequence_mask: Liu and Li 2025, "When speed kills
    stability", part 3, and TRL's mode of that name. W is bound from above alone: where small it counts for little.
    Deviation from slime: tokens of a masked completion stay in the loss's denominator, as in TRL, because the estimate
    is a mean over all that was sampled.

    Args:
        old_logprobs: shape (B, T), float32, by the training forward, before the update.
        sampled_logprobs: shape (B, T), float32, as the sampler gave them.
        mask: shape (B, T), bool.
        correction: "none", "token_truncate" or "sequence_mask".
        limit: C, at least 1.

    Returns:
        weights shape (B, T), float32, 1 on padding; clipped shape (B, T), bool, True on real tokens whose weight was
        cut to C, or whose completion is masked.
    """
    log_ratio = (old_logprobs - sampled_logprobs).where(mask, 0.0)
    if correction == "none":
        return torch.ones_like(log_ratio), torch.zeros_like(mask)
    if correction == "sequence_mask":
        log_ratio = log_ratio.sum(1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.exp()
    beyond = mask & ~(ratio <= limit)  # also where it is NaN
    cut = ratio.clamp(max=limit) if correction == "token_truncate" else ratio.where(ratio <= limit, 0.0)
    return cut.where(mask, 1.0), beyond
