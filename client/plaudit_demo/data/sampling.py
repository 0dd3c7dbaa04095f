"""Completions sampled from a policy in batches, by the trainer's own sampler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from plaudit_ppo.rollout.prompts import pad_left
from plaudit_ppo.rollout.rollouts import Rollouts, completion_texts
from plaudit_ppo.rollout.sampling import sample_rollouts


@dataclass(frozen=True)
class Completion:
    """A sampled completion.

    Attributes:
        text: without the EOS token.
        finished: the policy ended it with EOS within the limit.
        num_tokens: EOS included.
    """

    text: str
    finished: bool
    num_tokens: int


def sample_completions(
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int = 128,
    on_batch: Callable[[Rollouts], None] = lambda _: None,
) -> list[Completion]:
    """One sampled completion per prompt.

    Args:
        policy: in evaluation mode.
        tokenizer: the policy's.
        prompts: repeat a prompt to get several completions of it.
        max_tokens: of a completion, EOS included.
        temperature: the logits are divided by it.
        seed: of the sampling.
        batch_size: prompts per call.
        on_batch: called with the rollouts of each batch.

    Returns:
        The completions in the order of the prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    completions: list[Completion] = []
    for start in range(0, len(prompts), batch_size):
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts[start : start + batch_size]]
        rollouts = sample_rollouts(
            policy,
            *pad_left(ids, tokenizer.pad_token_id),
            max_tokens=max_tokens,
            temperature=temperature,
            eos_ids=[tokenizer.eos_token_id],
            pad_id=tokenizer.pad_token_id,
            generator=generator,
        )
        on_batch(rollouts)
        texts = completion_texts(rollouts, tokenizer, with_eos=[False] * len(rollouts))
        lengths = rollouts.completion_mask.sum(1).tolist()
        completions += map(Completion, texts, rollouts.finished.tolist(), lengths)
    return completions
