"""The steps of a completion: their texts for a scorer of steps, and the policy's token that ends each.

The tokenizers of policy and reward model meet in characters alone. Knows no training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from plaudit_ppo.rollout.completion_text import text_behind
from plaudit_ppo.rollout.prompts import Prompt
from plaudit_ppo.rollout.rollouts import Rollouts, completion_texts
from plaudit_ppo.scoring.items import Item, prompt_part


@dataclass(frozen=True)
class Steps:
    """The steps of one completion, at least one.

    Attributes:
        texts: what the policy wrote in each, without what separates them.
        tokens: for each the place of its last token in the completion.
    """

    texts: tuple[str, ...]
    tokens: tuple[int, ...]


def split_steps(text: str, separator: str) -> list[tuple[str, int]]:
    """The steps of a completion, and where each ends in it, behind its last character that is no white space.

    What is between two separators is a step unless it is white space alone. A completion of nothing else is one step.

    Args:
        text: the completion.
        separator: between two steps.
    """
    steps = []
    start = 0
    for part in text.split(separator):
        if part.strip():
            steps.append((part, start + len(part.rstrip())))
        start += len(part) + len(separator)
    return steps or [(text, len(text))]


def to_steps(
    rollouts: Rollouts, tokenizer: PreTrainedTokenizerBase, separator: str, *, stop: Sequence[str] = ()
) -> list[Steps]:
    """The steps of each rollout's completion.

    Args:
        rollouts: B rollouts.
        tokenizer: the policy's.
        separator: between two steps, in characters.
        stop: texts that end a completion, and are no part of it.
    """
    texts = completion_texts(rollouts, tokenizer, with_eos=[False] * len(rollouts), stop=stop)
    steps = []
    for row, text in enumerate(texts):
        prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row]].tolist()
        completion = rollouts.completion_ids[row][rollouts.completion_mask[row]].tolist()
        parts = split_steps(text, separator)
        ends = [end for _, end in parts]
        steps.append(Steps(tuple(part for part, _ in parts), ending_tokens(prompt, completion, text, ends, tokenizer)))
    return steps


def ending_tokens(
    prompt: Sequence[int], completion: Sequence[int], text: str, ends: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """The token with which each place in a completion's text has been written.

    It is the first token through which the decoded beginning has the text up to that place. Tokens are decoded behind
    their prompt, as `completion_texts` does, and never encoded again: the sampled ids need not be those that the text
    would get. A character of several tokens is written with the last of them, and one token may end several steps.

    Args:
        prompt: ids.
        completion: T ids, at least one.
        text: of the completion, as `completion_texts` gives it.
        ends: growing places in it, in characters.
        tokenizer: the policy's.

    Returns:
        For each a place in the completion, none falling.
    """

    def written(num_tokens: int) -> str:
        return text_behind(list(prompt), list(completion[:num_tokens]), tokenizer)

    def is_written(num_tokens: int, end: int) -> bool | None:
        """None: these tokens end inside of a character, which hides what is before it in a run of bytes."""
        beginning = written(num_tokens)
        if beginning[:end] == text[:end]:
            return True
        return False if text.startswith(beginning) else None

    tokens = []
    first = 0
    for end in ends:
        low, high = first, len(completion) - 2  # the last token has written all that is there
        first = len(completion) - 1
        while low <= high:
            middle = (low + high) // 2
            at = middle
            while at < len(completion) - 1 and (state := is_written(at + 1, end)) is None:
                at += 1
            if at == len(completion) - 1 or state:
                first, high = at, middle - 1
            else:
                low = at + 1
        tokens.append(first)
    return tuple(tokens)


def to_step_items(prompts: Sequence[Prompt], steps: Sequence[Steps]) -> list[Item]:
    """Rollouts in steps, in the form that `/score` takes.

    All are sent as finished, so that the last step of a completion that was cut has a score, too: what becomes of it
    is the rule for a missing EOS.
    """
    return [
        {**prompt_part(prompt), "steps": list(each.texts), "finished": True}
        for prompt, each in zip(prompts, steps, strict=True)
    ]


def place_step_scores(
    scores: Sequence[Mapping[int, float]], steps: Sequence[Steps], num_tokens: int, device: torch.device
) -> Tensor:
    """Step scores at the policy's tokens, shape (B, T), float32; 0 where no step ends, NaN where a step has no score.

    Where one token ends several steps, their scores add up.

    Args:
        scores: of the steps of each rollout, by the step's number.
        steps: of each rollout.
        num_tokens: T.
        device: of the result.
    """
    placed = torch.zeros(len(steps), num_tokens)
    for row, (own, each) in enumerate(zip(scores, steps, strict=True)):
        for number, token in enumerate(each.tokens):
            placed[row, token] += own.get(number, float("nan"))
    return placed.to(device)


def step_ends(steps: Sequence[Steps], num_tokens: int, device: torch.device) -> Tensor:
    """Shape (B, T), bool, True at the policy's tokens that end a step; the arguments are those of the scores."""
    ends = torch.zeros(len(steps), num_tokens, dtype=torch.bool)
    for row, each in enumerate(steps):
        ends[row, list(each.tokens)] = True
    return ends.to(device)
