"""Rollouts: prompts padded left, completions sampled by the policy, kept through the first EOS and padded right.

Which tokens are an EOS is in `endings`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from plaudit_ppo.errors import ConfigError, DivergenceError
from plaudit_ppo.forward import position_ids, tempered

_NOT_FINITE = (
    "the policy's probabilities are not finite, so nothing can be sampled; look for NaN in its weights, and in "
    "log.jsonl for a KL or a loss that runs away, then lower learning_rate. Where the newest checkpoint has NaN too, "
    "remove it and resume from the one before"
)


@dataclass(frozen=True)
class Rollouts:
    """B rollouts, prompts padded left to P tokens and completions padded right to T.

    Masks follow from positions, never from token ids, so a sampled pad token is a real token like any other.

    Attributes:
        prompt_ids: shape (B, P), int64.
        prompt_mask: shape (B, P), bool.
        completion_ids: shape (B, T), int64, with the EOS.
        completion_mask: shape (B, T), bool, True through the EOS; all False for a rollout that is out of training.
        finished: shape (B,), bool. True: ends with EOS; False: cut by length.
        sampled_logprobs: shape (B, T), float32, as the generating forward saw them; 0 on padding.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    finished: Tensor
    sampled_logprobs: Tensor

    def __len__(self) -> int:
        return self.prompt_ids.shape[0]

    def select(self, index: Tensor) -> "Rollouts":
        """The rows of `index` (ids or a mask), without the columns that are padding in all of them."""
        prompt_mask, completion_mask = self.prompt_mask[index], self.completion_mask[index]
        P = max(1, int(prompt_mask.sum(1).max()))
        T = max(1, int(completion_mask.sum(1).max()))
        return Rollouts(
            prompt_ids=self.prompt_ids[index][:, -P:],
            prompt_mask=prompt_mask[:, -P:],
            completion_ids=self.completion_ids[index][:, :T],
            completion_mask=completion_mask[:, :T],
            finished=self.finished[index],
            sampled_logprobs=self.sampled_logprobs[index][:, :T],
        )


def pad_token_id(tokenizer: PreTrainedTokenizerBase, missing_pad: str, eos_ids: Sequence[int] = ()) -> int:
    """An id to pad with that is not EOS.

    A tokenizer without a pad token, or with EOS as its pad token, gets an id that no token has: padding is masked, and
    masked ids are replaced before every forward, so no model ever sees it and neither tokenizer nor model changes.

    Args:
        tokenizer: the policy's.
        missing_pad: "add", or "refuse".
        eos_ids: what ends a completion besides the tokenizer's EOS.

    Raises:
        ConfigError: there is no EOS token; or no usable pad token and `missing_pad` is "refuse".
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("the policy's tokenizer has no EOS token, so no completion could ever end; set eos_token")
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in (tokenizer.eos_token_id, *eos_ids):
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

    Raises:
        DivergenceError: the policy gives no probabilities but NaN.
    """
    mask, positions = prompt_mask, position_ids(prompt_mask)
    inputs = torch.where(prompt_mask, prompt_ids, 0)
    running = torch.ones_like(prompt_mask[:, 0])
    ends = torch.tensor(eos_ids, device=prompt_ids.device)
    cache, tokens, kept, logprobs = None, [], [], []
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
                raise DivergenceError(_NOT_FINITE)
            token = torch.multinomial(distribution.exp(), 1, generator=generator)  # (B, 1)
            tokens.append(torch.where(running[:, None], token, pad_id))
            logprobs.append(torch.where(running[:, None], distribution.gather(1, token), 0.0))
            kept.append(running[:, None])
            mask = torch.cat([mask, kept[-1]], dim=1)
            inputs = torch.where(running[:, None], token, 0)
            positions = positions[:, -1:] + 1
            running = running & ~torch.isin(token[:, 0], ends)
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


def concatenate(parts: Sequence[Rollouts], pad_id: int) -> Rollouts:
    """One batch of several, padded to the longest prompt and the longest completion."""
    P = max(part.prompt_ids.shape[1] for part in parts)
    T = max(part.completion_ids.shape[1] for part in parts)

    def left(tensor: Tensor, value: float) -> Tensor:
        return functional.pad(tensor, (P - tensor.shape[1], 0), value=value)

    def right(tensor: Tensor, value: float) -> Tensor:
        return functional.pad(tensor, (0, T - tensor.shape[1]), value=value)

    return Rollouts(
        prompt_ids=torch.cat([left(part.prompt_ids, pad_id) for part in parts]),
        prompt_mask=torch.cat([left(part.prompt_mask, False) for part in parts]),
        completion_ids=torch.cat([right(part.completion_ids, pad_id) for part in parts]),
        completion_mask=torch.cat([right(part.completion_mask, False) for part in parts]),
        finished=torch.cat([part.finished for part in parts]),
        sampled_logprobs=torch.cat([right(part.sampled_logprobs, 0.0) for part in parts]),
    )


def completion_texts(rollouts: Rollouts, tokenizer: PreTrainedTokenizerBase, *, with_eos: Sequence[bool]) -> list[str]:
    """What the policy wrote, as text to append to the prompt; the final EOS only where `with_eos` says so.

    A completion is decoded behind its prompt and the prompt's text taken off, because many tokenizers drop the space
    before the first token of a text. Special tokens that were sampled before the end stay visible.
    """
    texts = []
    for row in range(len(rollouts)):
        prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row]].tolist()
        completion = rollouts.completion_ids[row][rollouts.completion_mask[row]].tolist()
        if rollouts.finished[row] and not with_eos[row]:
            completion = completion[:-1]
        before = tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
        whole = tokenizer.decode(prompt + completion, clean_up_tokenization_spaces=False)
        alone = not whole.startswith(before)
        texts.append(
            tokenizer.decode(completion, clean_up_tokenization_spaces=False) if alone else whole[len(before) :]
        )
    return texts
