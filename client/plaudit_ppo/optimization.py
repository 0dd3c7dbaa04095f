"""The optimizer and its learning-rate schedule."""

import torch
from torch import nn

from plaudit_ppo.config import PPOConfig


def make_optimizer(policy: nn.Module, critic: nn.Module, config: PPOConfig) -> torch.optim.AdamW:
    """AdamW over two parameter groups, the policy's and the critic's; `set_learning_rate` gives them their rates."""
    groups = [{"params": [p for p in model.parameters() if p.requires_grad]} for model in (policy, critic)]
    return torch.optim.AdamW(groups, lr=0.0, eps=config.adam_epsilon, weight_decay=config.weight_decay)


def schedule(iteration: int, *, iterations: int, warmup_iterations: int, lr_schedule: str) -> float:
    """The factor on the learning rate in an iteration (counted from 0).

    linear: 1 - i / n, so the first iteration has the full rate and the one after the last would have 0;
    constant: 1. During the warm-up, times (i + 1) / (w + 1).
    Huang et al. 2024, arXiv 2403.17031 (linear); Ouyang et al. 2022, appendix C (constant after a warm-up).
    """
    factor = 1 - iteration / iterations if lr_schedule == "linear" else 1.0
    return factor * min(1.0, (iteration + 1) / (warmup_iterations + 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, config: PPOConfig, iteration: int) -> float:
    """Sets both groups' rates for an iteration and returns the policy's."""
    factor = schedule(
        iteration,
        iterations=config.iterations,
        warmup_iterations=config.warmup_iterations,
        lr_schedule=config.lr_schedule,
    )
    critic_rate = config.critic_learning_rate or config.learning_rate
    for group, rate in zip(optimizer.param_groups, (config.learning_rate, critic_rate), strict=True):
        group["lr"] = rate * factor
    return config.learning_rate * factor
