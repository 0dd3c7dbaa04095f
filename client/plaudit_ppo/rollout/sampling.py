"""Completions sampled by the policy in this process."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from plaudit_ppo.errors import ConfigError, DivergenceError
from plaudit_ppo.rollout.completion_text import StopStrings
from plaudit_ppo.rollout.forward import position_ids, tempered
from plaudit_ppo.rollout.rollouts import Rollouts

NOT_FINITE = (
    "the policy's probabilities are not finite, so nothing can be sampled; look for NaN in its weights, "
    "and in log.jsonl for a KL or a loss that diverges, then lower learning_rate. If the newest "
    "checkpoint has NaN too, delete it and resume from the one before"
)


def pad_token_id(tokenizer: PreTrainedTokenizerBase, missing_pad: str, eos_ids: Sequence[int]) -> int:
    """An id to pad with that is not EOS.

    A tokenizer without a pad token, or with EOS as its pad token, gets an id that no token has: padding is masked, and
    masked ids are replaced before every forward, so no model ever sees it and neither tokenizer nor model changes.

    Args:
        tokenizer: the policy's.
        missing_pad: "add", or "refuse".
        eos_ids: what ends a completion.

    Raises:
        ConfigError: there is no usable pad token and `missing_pad` is "refuse".
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in eos_ids:
        return int(tokenizer.pad_token_id)
    if missing_pad == "refuse":
        actual = "no pad token" if tokenizer.pad_token_id is None else f'pad == EOS ("{tokenizer.pad_token}")'
        raise ConfigError(
            f"the policy's tokenizer has {actual}, and a pad that is EOS would hide EOS from the loss; "
            'give it a pad token of its own or set missing_pad = "add"'
        )
    return len(tokenizer)


def sample_rollouts(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    max_tokens: int,
    temperature: float,
    eos_ids: Sequence[int],
    pad_id: int,
    generator: torch.Generator,
    stop: StopStrings | None = None,
    greedy: bool = False,
) -> Rollouts:
    """Completions sampled from the whole tempered distribution (top_k 0, top_p 1), until all have ended.

    Args:
        model: a causal LM in the form of transformers.
        prompt_ids: shape (B, P), int64, padded left.
        prompt_mask: shape (B, P), bool.
        max_tokens: T at most.
        temperature: divides the logits.
        eos_ids: each ends a completion, and the one that was sampled belongs to it.
        pad_id: written after the EOS.
        generator: the only source of randomness.
        stop: what ends a completion besides; None: nothing.
        greedy: take the likeliest token instead.

    Raises:
        DivergenceError: the policy gives no probabilities but NaN.
    """
    mask, positions = prompt_mask, position_ids(prompt_mask)
    inputs = torch.where(prompt_mask, prompt_ids, 0)
    running = torch.ones_like(prompt_mask[:, 0])
    ends = torch.tensor(eos_ids, device=prompt_ids.device)
    cache, tokens, kept, logprobs = None, [], [], []
    sequences = [ids[real].tolist() for ids, real in zip(prompt_ids, prompt_mask, strict=True)] if stop else []
    with torch.inference_mode():
        for _ in range(max_tokens):
            output = model(
                input_ids=inputs,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            distribution = tempered(output.logits[:, -1], temperature).log_softmax(-1)  # (B, V)
            if distribution.isnan().any():  # before torch finds it, which on a GPU ends the whole process
                raise DivergenceError(NOT_FINITE)
            if greedy:
                token = distribution.argmax(-1, keepdim=True)  # (B, 1)
            else:
                token = torch.multinomial(distribution.exp(), 1, generator=generator)  # (B, 1)
            tokens.append(torch.where(running[:, None], token, pad_id))
            logprobs.append(torch.where(running[:, None], distribution.gather(1, token), 0.0))
            kept.append(running[:, None])
            mask = torch.cat([mask, kept[-1]], dim=1)
            inputs = torch.where(running[:, None], token, 0)
            positions = positions[:, -1:] + 1
            running = running & ~torch.isin(token[:, 0], ends)
            if stop is not None:
                for sequence, number in zip(sequences, token[:, 0].tolist(), strict=True):
                    sequence.append(number)
                going = running.tolist()
                for row, sequence in enumerate(sequences):
                    going[row] = going[row] and not stop.end_here(sequence, len(tokens))
                running = torch.tensor(going, device=running.device)
            if not running.any():
                break
    # Outside of inference mode, where joining makes tensors that autograd takes.
    return Rollouts(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=torch.cat(tokens, dim=1),
        completion_mask=torch.cat(kept, dim=1),
        finished=~running,
        sampled_logprobs=torch.cat(logprobs, dim=1),
    )
