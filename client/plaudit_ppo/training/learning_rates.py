"""The learning-rate schedule."""

from collections.abc import Sequence

import torch

from plaudit_ppo.config import PPOConfig


def schedule(iteration: int, *, iterations: int, warmup_iterations: int, lr_schedule: str) -> float:
    """The factor on the learning rate in an iteration (counted from 0).

    linear: 1 - i / n, so the first iteration has the full rate and the one after the last would have 0;
    constant: 1. During the warm-up, times (i + 1) / (w + 1).
    Huang et al. 2024, arXiv 2403.17031 (linear); Ouyang et al. 2022, appendix C (constant after a warm-up).
    """
    factor = 1 - iteration / iterations if lr_schedule == "linear" else 1.0
    return factor * min(1.0, (iteration + 1) / (warmup_iterations + 1))


def set_learning_rates(optimizers: Sequence[torch.optim.Optimizer], config: PPOConfig, iteration: int) -> float:
    """Sets both networks' rates for an iteration and returns the policy's, which is 0 while the critic warms up."""
    factor = schedule(
        iteration,
        iterations=config.iterations,
        warmup_iterations=config.warmup_iterations,
        lr_schedule=config.lr_schedule,
    )
    rate = 0.0 if iteration < config.critic_warmup_iterations else config.learning_rate
    rates = (rate, config.critic_learning_rate or config.learning_rate)
    for optimizer, own in zip(optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = own * factor
    return rate * factor
