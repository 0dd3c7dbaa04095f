"""Warm-up: supervised training of the policy on the corpus, on completion tokens only."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from plaudit_demo.data.corpus import Example
from plaudit_demo.training.models import make_causal_lm, train_policy_tokenizer

_IGNORED = -100


def make_warmed_up_policy(
    directory: Path,
    examples: Sequence[Example],
    *,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    max_tokens: int,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    on_step: Callable[[float], None],
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Make a tokenizer and a policy of random weights, train it to write like the corpus, and save both.

    Args:
        directory: where they are saved.
        examples: the corpus.
        vocab_size: of the tokenizer.
        hidden_size: of the policy.
        num_layers: of the policy.
        max_tokens: positions of the policy.
        num_steps: as in `warm_up`.
        batch_size: as in `warm_up`.
        learning_rate: as in `warm_up`.
        seed: of the weights and of the order of the examples.
        on_step: as in `warm_up`.
    """
    tokenizer = train_policy_tokenizer([each.prompt + each.completion for each in examples], vocab_size)
    policy = make_causal_lm(tokenizer, hidden_size=hidden_size, num_layers=num_layers, max_tokens=max_tokens, seed=seed)
    warm_up(
        policy,
        tokenizer,
        examples,
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        on_step=on_step,
    )
    policy.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return policy, tokenizer


def warm_up(
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    on_step: Callable[[float], None],
) -> None:
    """Train a policy in place to write like the corpus.

    Args:
        policy: changed in place.
        tokenizer: the policy's.
        examples: shuffled, then used in turn, as often as the steps need.
        num_steps: optimizer steps.
        batch_size: examples per step.
        learning_rate: peak; rises over the first tenth of the steps, then falls linearly to 0.
        seed: of the order of the examples.
        on_step: called after each step with its loss, in nats per token.
    """
    rows = [_encode(tokenizer, example) for example in examples]
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [torch.randperm(len(rows), generator=generator) for _ in range(1 + num_steps * batch_size // len(rows))]
    )
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.01)
    rise = max(1, num_steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (num_steps - step) / max(1, num_steps - rise))
    )
    policy.train()
    for step in range(num_steps):
        chosen = order[step * batch_size : (step + 1) * batch_size].tolist()
        batch = _collate([rows[index] for index in chosen], tokenizer.pad_token_id)
        loss = policy(**batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(loss.item())
    policy.eval()


def _encode(tokenizer: PreTrainedTokenizerFast, example: Example) -> tuple[list[int], list[int]]:
    prompt = tokenizer(example.prompt)["input_ids"]
    completion = [*tokenizer(example.completion)["input_ids"], tokenizer.eos_token_id]
    return prompt + completion, [_IGNORED] * len(prompt) + completion


def _collate(rows: Sequence[tuple[list[int], list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    pads = [longest - len(ids) for ids, _ in rows]
    return {
        "input_ids": torch.tensor([ids + [pad_token_id] * pad for (ids, _), pad in zip(rows, pads, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * pad for (ids, _), pad in zip(rows, pads, strict=True)]),
        "labels": torch.tensor([labels + [_IGNORED] * pad for (_, labels), pad in zip(rows, pads, strict=True)]),
    }
