"""The forward pass that sampling, reference, critic and training share: positions, masked ids, temperature."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from plaudit_ppo.rollout.chunks import Chunked
from plaudit_ppo.rollout.rollouts import Rollouts

PAD_LOGPROB = 1.0  # no token has it, the same in policy, old and reference: ratio 1 and KL 0 on padding


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that do not see padding: the exclusive cumulative sum of the mask.

    position[t] = number of real tokens before t.
    Huang et al. 2024, detail 1, arXiv 2403.17031.

    Args:
        attention_mask: shape (B, S), bool, True on real tokens.

    Returns:
        shape (B, S), int64.
    """
    mask = attention_mask.long()
    return mask.cumsum(1) - mask


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits in float32, divided by (temperature + 1e-7), in every pass alike.

    Huang et al. 2023, "The N implementation details of RLHF with PPO", detail "sample with temperature".
    """
    return logits.float() / (temperature + 1e-7)


def model_inputs(rollouts: Rollouts) -> dict[str, Tensor]:
    """What a forward over prompt and completion takes; masked ids are 0, so a pad id may lie outside the vocabulary.

    Returns:
        input_ids, attention_mask and position_ids, each shape (B, S), int64, S = P + T.
    """
    ids = torch.cat([rollouts.prompt_ids, rollouts.completion_ids], dim=1)
    mask = torch.cat([rollouts.prompt_mask, rollouts.completion_mask], dim=1)
    return {
        "input_ids": torch.where(mask, ids, 0),
        "attention_mask": mask.long(),
        "position_ids": position_ids(mask),
    }


def completion_logits(model: nn.Module, rollouts: Rollouts, *, temperature: float) -> Tensor:
    """Tempered logits of the distribution that each completion token was drawn from.

    Returns:
        shape (B, T, V), float32: logits[:, t] predicts completion token t.
    """
    T = rollouts.completion_ids.shape[1]
    output = model(**model_inputs(rollouts), use_cache=False, logits_to_keep=T + 1)
    return tempered(output.logits[:, -T - 1 : -1], temperature)


def token_logprobs(logits: Tensor, rollouts: Rollouts) -> Tensor:
    """Log-probabilities of the completion tokens, and PAD_LOGPROB where the mask is False.

    logprob[t] = logits[t, id[t]] - logsumexp(logits[t])

    Args:
        logits: shape (B, T, V), float32, tempered.
        rollouts: whose completion tokens.

    Returns:
        shape (B, T), float32.
    """
    mask = rollouts.completion_mask
    return torch.where(mask, _logprobs(logits, torch.where(mask, rollouts.completion_ids, 0)), PAD_LOGPROB)


def _logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Of tokens (...) under tempered logits (..., V)."""
    return logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)


def completion_logprobs(
    model: nn.Module, rollouts: Rollouts, *, temperature: float, chunk_tokens: int, entropy_gradient: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the completion tokens as `token_logprobs`, and the entropy of each one's distribution.

    Args:
        model: a causal LM, which `chunks.answer_in_chunks` has changed where `chunk_tokens` is above 0.
        rollouts: whose completion tokens.
        temperature: divides the logits.
        chunk_tokens: of so many positions at most there are logits at once; 0: of all.
        entropy_gradient: whether the entropy is a part of the loss; None: it is not asked for, and is 0.

    Returns:
        logprobs and entropies, each shape (B, T), float32.
    """

    def statistics(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = _logprobs(logits, ids)
        if entropy_gradient is None:
            return logprobs, torch.zeros_like(logprobs)
        with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
            return logprobs, entropy(logits)

    mask = rollouts.completion_mask
    ids = torch.where(mask, rollouts.completion_ids, 0)
    if chunk_tokens:
        of_chunk = Chunked(ids, chunk_tokens, lambda logits, ids: statistics(tempered(logits, temperature), ids))
        logprobs, entropies = model(**model_inputs(rollouts), use_cache=False, chunked=of_chunk)
    else:
        logprobs, entropies = statistics(completion_logits(model, rollouts, temperature=temperature), ids)
    return torch.where(mask, logprobs, PAD_LOGPROB), entropies


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each distribution, in nats.

    H = logsumexp(x) - sum(softmax(x) * x)

    Args:
        logits: shape (..., V), float32, tempered.

    Returns:
        shape (...), float32.
    """
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


def completion_values(critic: nn.Module, rollouts: Rollouts) -> Tensor:
    """The critic's estimate before each completion token, 0 where the mask is False.

    V[t] is read at the token before completion token t: at the last prompt token for t = 0.

    Returns:
        shape (B, T), float32.
    """
    T = rollouts.completion_ids.shape[1]
    values = critic(**model_inputs(rollouts))[:, -T - 1 : -1].float()
    return torch.where(rollouts.completion_mask, values, 0.0)


@torch.no_grad()
def evaluate_rollouts(
    policy: nn.Module,
    reference: nn.Module,
    critic: nn.Module,
    rollouts: Rollouts,
    *,
    temperature: float,
    micro_batch_size: int,
    chunk_tokens: int = 0,
    as_sampled: AbstractContextManager[None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the three networks say about rollouts before the update.

    Args:
        policy: that learns from the rollouts.
        reference: the anchor of the KL penalty.
        critic: as it is, whichever version of the policy has sampled.
        rollouts: B of them.
        temperature: divides the logits.
        micro_batch_size: rollouts in one pass.
        chunk_tokens: as of `completion_logprobs`.
        as_sampled: inside, the policy is the one that sampled the rollouts; None: it is that one.

    Returns:
        logprobs of the policy, logprobs of the reference, values of the critic; each shape (B, T), float32.
    """

    def of_all(ask: Callable[[Rollouts], Tensor]) -> Tensor:
        whole = torch.zeros_like(rollouts.sampled_logprobs)
        for index in torch.arange(len(rollouts)).split(micro_batch_size):
            answer = ask(rollouts.select(index))
            whole[index, : answer.shape[1]] = answer
        return whole

    def logprobs(model: nn.Module) -> Tensor:
        return of_all(
            lambda part: completion_logprobs(model, part, temperature=temperature, chunk_tokens=chunk_tokens)[0]
        )

    with as_sampled or nullcontext():
        of_policy = logprobs(policy)
    return of_policy, logprobs(reference), of_all(lambda part: completion_values(critic, part))
