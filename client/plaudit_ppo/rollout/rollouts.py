"""Rollouts: prompts padded left, completions kept through the first EOS and padded right.

Which tokens are an EOS is in `endings`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from plaudit_ppo.rollout.completion_text import before_stop, text_behind


@dataclass(frozen=True)
class Rollouts:
    """B rollouts, prompts padded left to P tokens and completions padded right to T.

    Masks follow from positions, never from token ids, so a sampled pad token is a real token like any other.

    Attributes:
        prompt_ids: shape (B, P), int64.
        prompt_mask: shape (B, P), bool.
        completion_ids: shape (B, T), int64, with the EOS.
        completion_mask: shape (B, T), bool, True through the EOS; all False for a rollout that is out of training.
        finished: shape (B,), bool. True: ends with EOS or a stop string; False: cut by length.
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


def completion_texts(
    rollouts: Rollouts,
    tokenizer: PreTrainedTokenizerBase,
    *,
    with_eos: Sequence[bool],
    stop: Sequence[str] = (),
) -> list[str]:
    """What the policy wrote, as text to append to the prompt; the final EOS only where `with_eos` says so.

    What has ended at one of the texts `stop` has no EOS, and goes up to that text. Special tokens that were sampled
    before the end stay visible.
    """
    texts = []
    for row in range(len(rollouts)):
        prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row]].tolist()
        completion = rollouts.completion_ids[row][rollouts.completion_mask[row]].tolist()
        text = text_behind(prompt, completion, tokenizer)
        stopped = before_stop(text, stop)
        if stopped == text and rollouts.finished[row] and not with_eos[row]:
            stopped = text_behind(prompt, completion[:-1], tokenizer)
        texts.append(stopped)
    return texts
