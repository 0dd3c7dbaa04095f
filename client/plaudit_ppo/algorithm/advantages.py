"""Advantages and returns: generalized advantage estimation, and whitening under a mask."""

from collections.abc import Callable

import torch
from torch import Tensor


def compute_gae(rewards: Tensor, values: Tensor, completion_mask: Tensor, *, gamma: float, gae_lambda: float) -> Tensor:
    """Generalized advantage estimates for completions of unequal length.

    A[t] = d[t] + gamma * lambda * A[t+1],  d[t] = r[t] + gamma * V[t+1] - V[t],  V = 0 after the last real token.
    Schulman et al. 2016, section 3, arXiv 1506.02438. Deviation: a truncated completion counts as terminal.

    Args:
        rewards: shape (B, T), float32. Zero on padding.
        values: shape (B, T), float32. Zero on padding.
        completion_mask: shape (B, T), bool, True on real tokens.
        gamma: discount per token.
        gae_lambda: 1 is the Monte Carlo return, 0 the one-step error.

    Returns:
        shape (B, T), float32, zero on padding.

    Raises:
        ValueError: the shapes differ.
    """
    if not rewards.shape == values.shape == completion_mask.shape:
        shapes = f"{tuple(rewards.shape)}, {tuple(values.shape)}, {tuple(completion_mask.shape)}"
        raise ValueError(f"rewards, values and completion_mask have the shapes {shapes}; they have to be equal")
    advantages = torch.zeros_like(rewards)
    following, next_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        real = completion_mask[:, t]
        error = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(real, error + gamma * gae_lambda * following, 0.0)
        next_value = torch.where(real, values[:, t], 0.0)
        advantages[:, t] = following
    return advantages


def whiten(
    values: Tensor,
    mask: Tensor,
    *,
    shift_mean: bool = True,
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Tensor:
    """Values with variance 1 over the real tokens, and mean 0 or their own; 0 elsewhere.

    (x - mean) * rsqrt(var + 1e-8), biased variance, both over all real tokens of all processes; without the shift, the
    mean is added again. Huang et al. 2023, "whitening"; deviation from 2403.17031 and TRL, which whiten per process.

    Args:
        values: shape (B, T), float32.
        mask: shape (B, T), bool.
        shift_mean: advantages are shifted to mean 0, rewards keep their mean.
        total: sums a tensor over all processes.

    Returns:
        shape (B, T), float32.
    """
    count = total(mask.sum())
    mean = total(torch.where(mask, values, 0.0).sum()) / count
    variance = total(torch.where(mask, (values - mean) ** 2, 0.0).sum()) / count
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)
