"""The update: epochs over one rollout batch, each minibatch one optimizer step, split into micro-batches for memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from plaudit_ppo.advantages import whiten
from plaudit_ppo.config import PPOConfig
from plaudit_ppo.errors import DivergenceError
from plaudit_ppo.experience import Experience
from plaudit_ppo.forward import completion_logits, completion_values, entropy, token_logprobs
from plaudit_ppo.guards import check_ratio
from plaudit_ppo.kl import kl_k1, kl_k2
from plaudit_ppo.losses import masked_total, policy_losses, value_losses

_DIVERGENCE_REMEDY = (
    "look in log.jsonl for a score, a KL or a value loss that runs away, then lower learning_rate, "
    "critic_learning_rate or max_grad_norm, or set score_clip"
)


@dataclass(frozen=True)
class Learner:
    """What an update changes: the policy, the critic, and the optimizer's state."""

    policy: nn.Module
    critic: nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator


def run_update(
    learner: Learner, experience: Experience, config: PPOConfig, *, generator: torch.Generator
) -> dict[str, float]:
    """All epochs over one rollout batch; minibatches are reshuffled in each.

    Ouyang et al. 2022, appendix C; Huang et al. 2024, arXiv 2403.17031.

    Returns:
        Means over the real tokens of all minibatches, under the metrics' names.

    Raises:
        RatioError: before the first step, the policy is not the one that sampled.
        DivergenceError: a loss or a gradient is not finite.
    """
    totals: dict[str, Tensor] = {}
    for _ in range(config.epochs):
        order = torch.randperm(len(experience.rollouts), generator=generator)
        for index in order.tensor_split(config.num_minibatches):
            minibatch = experience.select(index)
            if not minibatch.mask.any():
                continue
            for name, total in _step(learner, minibatch, config, first=not totals).items():
                totals[name] = totals.get(name, torch.zeros(())) + total
    return _averages({name: float(total) for name, total in totals.items()})


def _step(learner: Learner, minibatch: Experience, config: PPOConfig, *, first: bool) -> dict[str, Tensor]:
    """One optimizer step on a minibatch; returns sums over its real tokens."""
    accelerator = learner.accelerator
    if config.whiten_advantages == "minibatch":
        minibatch = replace(
            minibatch, advantages=whiten(minibatch.advantages, minibatch.mask, total=accelerator.reduce)
        )
    # The mean is over the whole minibatch of all processes. DDP averages gradients, which the factor undoes.
    denominator = accelerator.reduce(minibatch.mask.sum()) / accelerator.num_processes
    totals: dict[str, Tensor] = {}
    for micro_batch in _micro_batches(minibatch, config.micro_batch_size):
        sums, ratio_error = _token_sums(learner, micro_batch, config)
        if first:
            check_ratio(ratio_error, tolerance=config.ratio_tolerance)
        loss = (
            sums["loss/policy_avg"]
            + config.value_coef * sums["loss/value_avg"]
            + config.kl_loss_coef * sums["loss/kl_avg"]
        )
        _check_losses(sums)
        accelerator.backward(loss / denominator)
        for name, value in sums.items():
            totals[name] = totals.get(name, torch.zeros(())) + value.detach().cpu()
    for name, model in (("policy", learner.policy), ("critic", learner.critic)):
        norm = float(accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf))
        if not math.isfinite(norm):
            raise DivergenceError(f"the gradient of the {name} is {norm}, and no step was made; {_DIVERGENCE_REMEDY}")
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    return totals


def _check_losses(sums: dict[str, Tensor]) -> None:
    for name in ("policy", "value", "kl"):
        loss = float(sums[f"loss/{name}_avg"].detach())
        if not math.isfinite(loss):
            raise DivergenceError(f"the {name} loss is {loss}, and no step was made; {_DIVERGENCE_REMEDY}")


def _micro_batches(minibatch: Experience, size: int) -> Iterator[Experience]:
    """The minibatch in parts of similar length, because the split does not change the sum and saves padding."""
    by_length = minibatch.mask.sum(1).argsort(stable=True)
    for index in by_length.split(size):
        part = minibatch.select(index)
        if part.mask.any():
            yield part


def _token_sums(learner: Learner, batch: Experience, config: PPOConfig) -> tuple[dict[str, Tensor], float]:
    """Losses and statistics of one micro-batch, summed over its real tokens; and the largest |ratio - 1|."""
    mask, rollouts = batch.mask, batch.rollouts
    logits = completion_logits(learner.policy, rollouts, temperature=config.temperature)
    logprobs = token_logprobs(logits, rollouts)
    log_ratio = logprobs - batch.old_logprobs
    ratio = log_ratio.exp()
    values = completion_values(learner.critic, rollouts)
    policy_loss, policy_clipped = policy_losses(ratio, batch.advantages, clip_range=config.clip_range)
    value_loss, value_clipped = value_losses(
        values, batch.old_values, batch.returns, clip_range=config.value_clip_range
    )
    losses = {"policy": policy_loss, "value": value_loss, "kl": kl_k2(kl_k1(logprobs, batch.ref_logprobs))}
    sums = {f"loss/{name}_avg": masked_total(loss, mask) for name, loss in losses.items()}
    with torch.no_grad():
        statistics = {
            "tokens": torch.ones_like(ratio),
            "policy/approxkl_avg": 0.5 * log_ratio**2,
            "policy/clipfrac_avg": policy_clipped.float(),
            "policy/entropy_avg": entropy(logits),
            "val/clipfrac_avg": value_clipped.float(),
            "val/ratio": ratio,
            "val/ratio_var": ratio**2,
        }
        sums |= {name: masked_total(statistic, mask) for name, statistic in statistics.items()}
        ratio_error = float((ratio - 1).where(mask, 0.0).abs().max())
    return sums, ratio_error


def _averages(totals: dict[str, float]) -> dict[str, float]:
    """Sums over tokens to means over tokens; the ratio's sum of squares to its variance."""
    tokens = totals.pop("tokens")
    averages = {name: total / tokens for name, total in totals.items()}
    averages["val/ratio_var"] = max(0.0, averages["val/ratio_var"] - averages["val/ratio"] ** 2)
    return averages
