"""PPO's two clipped losses, per token; who calls them sums over a mask and divides."""

import torch
from torch import Tensor


def policy_losses(
    ratio: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate loss of each token.

    L = max(-A * r, -A * clip(r, 1 - c, 1 + h)),  r = exp(logprob - old_logprob);  h = c where it is not given.
    With a dual clip d: min(L, -d * A) where A < 0, so that a token that was bad and has become likely pulls no harder.
    Schulman et al. 2017, section 3, arXiv 1707.06347; h: Yu et al. 2025 (DAPO), section 3.1, arXiv 2503.14476; d: Ye et
    al. 2020, arXiv 1912.09729, "dual-clip PPO".

    Args:
        ratio: shape (B, T), float32.
        advantages: shape (B, T), float32.
        clip_range: c.
        clip_range_high: h; None: c.
        dual_clip: d, above 1; None: none.

    Returns:
        losses shape (B, T), float32; clipped shape (B, T), bool, True where a clipped term is the loss.
    """
    unclipped = -advantages * ratio
    high = clip_range if clip_range_high is None else clip_range_high
    near = -advantages * ratio.clamp(1 - clip_range, 1 + high)
    losses, clipped = torch.maximum(unclipped, near), near > unclipped
    if dual_clip is None:
        return losses, clipped
    bound = -dual_clip * advantages
    beyond = (advantages < 0) & (losses > bound)
    return torch.where(beyond, bound, losses), clipped | beyond


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, *, clip_range: float) -> tuple[Tensor, Tensor]:
    """The clipped squared error of each value.

    0.5 * max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2).
    Ziegler et al. 2019, code; Huang et al. 2023, "value function clipping".

    Args:
        values: shape (B, T), float32.
        old_values: shape (B, T), float32, at sampling.
        returns: shape (B, T), float32, R.
        clip_range: c.

    Returns:
        losses shape (B, T), float32; clipped shape (B, T), bool, True where the clipped term is the larger.
    """
    near = torch.clamp(values, old_values - clip_range, old_values + clip_range)
    unclipped, clipped = (values - returns) ** 2, (near - returns) ** 2
    return 0.5 * torch.maximum(unclipped, clipped), clipped > unclipped


def masked_total(losses: Tensor, mask: Tensor) -> Tensor:
    """The sum over real tokens.

    Divided by the number of real tokens of the *whole minibatch*, micro-batches add up to the minibatch's mean,
    however it is split.

    Args:
        losses: shape (B, T), float32.
        mask: shape (B, T), bool.
    """
    return torch.where(mask, losses, 0.0).sum()
