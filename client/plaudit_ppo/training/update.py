"""The update: epochs over one rollout batch, each minibatch one optimizer step, split into micro-batches for memory."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from plaudit_ppo.algorithm.advantages import whiten
from plaudit_ppo.algorithm.kl import kl_k1, kl_k2
from plaudit_ppo.algorithm.losses import masked_total, policy_losses, value_losses
from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.collectives import largest
from plaudit_ppo.distributed.learner import Learner
from plaudit_ppo.errors import DivergenceError
from plaudit_ppo.rollout.forward import completion_logprobs, completion_values
from plaudit_ppo.training.experience import Experience
from plaudit_ppo.training.guards import RATIO_TOLERANCE, check_ratio

_DIVERGENCE_REMEDY = (
    "look in log.jsonl for a score, a KL or a value loss that diverges, then lower learning_rate, "
    "critic_learning_rate or max_grad_norm, or set score_clip"
)


def run_update(
    learner: Learner,
    experience: Experience,
    config: PPOConfig,
    *,
    generator: torch.Generator,
    critic_alone: bool = False,
    is_stale: bool = False,
) -> dict[str, float]:
    """All epochs over one rollout batch; minibatches are reshuffled in each.

    Ouyang et al. 2022, appendix C; Huang et al. 2024, arXiv 2403.17031.

    Args:
        learner: what is changed.
        experience: the rollout batch.
        config: the settings of the losses.
        generator: shuffles.
        critic_alone: the policy, its optimizer included, stays as it is.
        is_stale: an earlier version of the policy has sampled, so that the ratio is not 1 at first.

    Returns:
        Means over the real tokens of all minibatches of all processes, under the metrics' names.

    Raises:
        RatioError: before the first step, the policy is not the one that sampled.
        DivergenceError: a loss or a gradient is not finite.
    """
    totals: dict[str, float] = {}
    has_ratio_1 = not is_stale
    for _ in range(config.epochs):
        order = torch.randperm(len(experience.rollouts), generator=generator)
        for index in order.tensor_split(config.num_minibatches):
            minibatch = experience.select(index)
            tokens = int(learner.accelerator.reduce(minibatch.mask.sum()))
            if tokens == 0:
                continue
            sums = _step(learner, minibatch, config, tokens=tokens, has_ratio_1=has_ratio_1, critic_alone=critic_alone)
            has_ratio_1 = False
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + value
    return _averages(totals)


def _step(
    learner: Learner, minibatch: Experience, config: PPOConfig, *, tokens: int, has_ratio_1: bool, critic_alone: bool
) -> dict[str, float]:
    """One optimizer step on this process's part of a minibatch; returns sums over the `tokens` real ones of it all."""
    accelerator = learner.accelerator
    if config.whiten_advantages == "minibatch":
        minibatch = replace(
            minibatch, advantages=whiten(minibatch.advantages, minibatch.mask, total=accelerator.reduce)
        )
    # The mean is over the whole minibatch of all processes. DDP averages gradients, which the factor undoes.
    denominator = tokens / accelerator.num_processes
    sums: dict[str, Tensor] = {}
    ratio_error = 0.0
    micro_batches = _micro_batches(minibatch, config.micro_batch_size, skip_empty=accelerator.num_processes == 1)
    for number, micro_batch in enumerate(micro_batches):
        with learner.micro_batch(is_last=number + 1 == len(micro_batches)):
            parts, furthest = token_sums(learner.policy, learner.critic, micro_batch, config, critic_alone=critic_alone)
            error = float(furthest)
            policy_loss, value_loss = losses(parts, config)
            learner.backward(None if critic_alone else policy_loss / denominator, value_loss / denominator)
        ratio_error = max(ratio_error, error) if error == error else error  # NaN stays
        for name, value in parts.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
    if has_ratio_1:
        _check_ratio(learner, config, ratio_error)
    stacked = accelerator.reduce(torch.stack(list(sums.values()))).tolist()
    totals = dict(zip(sums, stacked, strict=True))
    _check_losses(totals)
    if culprit := learner.step(critic_alone=critic_alone):
        raise DivergenceError(f"the gradient of the {culprit} is not finite, and it made no step; {_DIVERGENCE_REMEDY}")
    return totals


@torch.no_grad()
def check_sampled_ratio(learner: Learner, experience: Experience, config: PPOConfig) -> None:
    """The guard on the ratio where an earlier version has sampled: while the policy is that version, before the update.

    Over the rollouts of one minibatch, in the micro-batches of an update; its price is a pass over them.

    Args:
        learner: whose policy is the version that sampled.
        experience: the rollout batch.
        config: the settings of the losses.

    Raises:
        RatioError: the policy is not the one that sampled.
    """
    first, *_ = torch.arange(len(experience.rollouts)).tensor_split(config.num_minibatches)
    alone = learner.accelerator.num_processes == 1
    errors = [0.0]
    for part in _micro_batches(experience.select(first), config.micro_batch_size, skip_empty=alone):
        logprobs, _ = completion_logprobs(
            learner.policy, part.rollouts, temperature=config.temperature, chunk_tokens=config.logits_chunk_tokens
        )
        errors.append(float(_ratio_error(logprobs - part.old_logprobs, part.mask)))
    _check_ratio(learner, config, float(torch.tensor(errors).max()))  # NaN where one is


def _check_ratio(learner: Learner, config: PPOConfig, error: float) -> None:
    tolerance = config.ratio_tolerance or RATIO_TOLERANCE[config.precision]
    check_ratio(largest(learner.accelerator, error), tolerance=tolerance)


def _ratio_error(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The largest |ratio - 1|."""
    return (log_ratio.exp() - 1).where(mask, 0.0).abs().max()


def _check_losses(totals: dict[str, float]) -> None:
    for name in ("policy", "value", "kl"):
        loss = totals[f"loss/{name}_avg"]
        if not math.isfinite(loss):
            raise DivergenceError(f"the {name} loss is {loss}, and no step was made; {_DIVERGENCE_REMEDY}")


def _micro_batches(minibatch: Experience, size: int, *, skip_empty: bool) -> list[Experience]:
    """The minibatch in parts of similar length, because the split does not change the sum and saves padding.

    Several processes have to make the same number of passes, also over parts in which no rollout has a score.
    """
    by_length = minibatch.mask.sum(1).argsort(stable=True)
    parts = [minibatch.select(index) for index in by_length.split(size)]
    return [part for part in parts if part.mask.any() or not skip_empty]


def losses(sums: Mapping[str, Tensor], config: PPOConfig) -> tuple[Tensor, Tensor]:
    """What is minimized, summed over tokens: of the policy, and of the critic with its weight."""
    policy_loss = sums["loss/policy_avg"] + config.kl_loss_coef * sums["loss/kl_avg"]
    if config.entropy_coef:
        policy_loss = policy_loss - config.entropy_coef * sums["policy/entropy_avg"]
    return policy_loss, config.value_coef * sums["loss/value_avg"]


def token_sums(
    policy: nn.Module, critic: nn.Module, batch: Experience, config: PPOConfig, *, critic_alone: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """Losses and statistics of one micro-batch, summed over its real tokens; and the largest |ratio - 1|.

    Args:
        policy: to be called for its logits.
        critic: to be called for its values.
        batch: the micro-batch.
        config: the settings of the losses.
        critic_alone: the policy gets no gradients.
    """
    mask, rollouts = batch.mask, batch.rollouts
    with torch.set_grad_enabled(not critic_alone):
        logprobs, entropies = completion_logprobs(
            policy,
            rollouts,
            temperature=config.temperature,
            chunk_tokens=config.logits_chunk_tokens,
            entropy_gradient=config.entropy_coef > 0,
        )
    log_ratio = logprobs - batch.old_logprobs
    ratio = log_ratio.exp()
    values = completion_values(critic, rollouts)
    policy_loss, policy_clipped = policy_losses(
        ratio,
        batch.advantages,
        clip_range=config.clip_range,
        clip_range_high=config.clip_range_high,
        dual_clip=config.dual_clip,
    )
    value_loss, value_clipped = value_losses(
        values, batch.old_values, batch.returns, clip_range=config.value_clip_range
    )
    policy_loss = policy_loss * batch.sampling_weights
    of_tokens = {"policy": policy_loss, "value": value_loss, "kl": kl_k2(kl_k1(logprobs, batch.ref_logprobs))}
    sums = {f"loss/{name}_avg": masked_total(loss, mask) for name, loss in of_tokens.items()}
    sums["policy/entropy_avg"] = masked_total(entropies, mask)
    with torch.no_grad():
        statistics = {
            "tokens": torch.ones_like(ratio),
            "policy/approxkl_avg": 0.5 * log_ratio**2,
            "policy/clipfrac_avg": policy_clipped.float(),
            "val/clipfrac_avg": value_clipped.float(),
            "val/ratio": ratio,
            "val/ratio_var": ratio**2,
        }
        sums |= {name: masked_total(statistic, mask) for name, statistic in statistics.items()}
    return sums, _ratio_error(log_ratio.detach(), mask)


def _averages(totals: dict[str, float]) -> dict[str, float]:
    """Sums over tokens to means over tokens; the ratio's sum of squares to its variance."""
    tokens = totals.pop("tokens")
    averages = {name: total / tokens for name, total in totals.items()}
    averages["val/ratio_var"] = max(0.0, averages["val/ratio_var"] - averages["val/ratio"] ** 2)
    return averages
