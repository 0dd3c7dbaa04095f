"""The KL divergence from the reference: per-token estimates, and the controller of its weight."""

import torch
from torch import Tensor


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The k1 estimate per token: unbiased under the sampling policy, and negative on some tokens.

    k1 = logprob - ref_logprob. Schulman 2020, "Approximating KL divergence".

    Args:
        logprobs: shape (B, T), float32, at sampling.
        ref_logprobs: shape (B, T), float32.

    Returns:
        shape (B, T), float32, 0 on padding.
    """
    return logprobs - ref_logprobs


def kl_k2(k1: Tensor) -> Tensor:
    """The k2 estimate per token: as a loss, the one whose gradient is that of the KL divergence.

    k2 = k1^2 / 2, so its gradient is k1 * grad(logprob). Schulman 2020.

    Args:
        k1: shape (B, T), float32.

    Returns:
        shape (B, T), float32.
    """
    return 0.5 * k1**2


def kl_k3(k1: Tensor) -> Tensor:
    """The k3 estimate per token: unbiased as k1 is, and never negative.

    k3 = exp(-k1) - 1 + k1. Schulman 2020.

    Args:
        k1: shape (B, T), float32.

    Returns:
        shape (B, T), float32.
    """
    return torch.expm1(-k1) + k1


def next_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: int, num_rollouts: int) -> float:
    """Beta for the next iteration: larger after a KL above the target, smaller after one below.

    e = clip(KL / target - 1, -0.2, 0.2),  beta = beta * (1 + e * n / horizon).
    Ziegler et al. 2019, section 2.2, arXiv 1909.08593.

    Args:
        kl_coef: beta of the iteration that has ended.
        kl: its KL, sum over tokens, mean over rollouts; nats.
        target: the KL to hold; nats.
        horizon: rollouts after which an error of 0.2 has changed beta by about a fifth.
        num_rollouts: n, of the iteration.
    """
    error = min(0.2, max(-0.2, kl / target - 1))
    return kl_coef * (1 + error * num_rollouts / horizon)
