"""Prompts: read from a JSONL file, encoded for the policy, and dealt out in a shuffled order."""

import codecs
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from plaudit_ppo.errors import PromptError
from plaudit_ppo.rollout.seeding import seeded_generator

_EXPECTED = 'each line is {"prompt": "..."} or {"messages": [{"role": "...", "content": "..."}]}'


@dataclass(frozen=True)
class Prompt:
    """What a completion answers: a text, or the messages of a chat (exactly one of the two)."""

    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    where: str = field(default="prompt", compare=False)  # file and line, for error messages

    def __post_init__(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise PromptError(f"{self.where}: needs either a text or messages")


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a JSONL file; empty lines are skipped, fields besides prompt and messages are ignored.

    Raises:
        PromptError: the file is missing or empty, or a line is not a prompt; the message names the line.
    """
    try:
        lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error.strerror}); prompts is a JSONL file, {_EXPECTED}") from error
    prompts = [_parse(line, f"{path} line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise PromptError(f"{path}: holds no prompts; {_EXPECTED}")
    return prompts


def _parse(line: bytes, where: str) -> Prompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: not JSON ({error}); {_EXPECTED}") from error
    given = {"prompt", "messages"} & record.keys() if isinstance(record, dict) else set()
    if len(given) != 1:
        raise PromptError(f"{where}: needs either prompt or messages, has {sorted(given) or 'neither'}; {_EXPECTED}")
    text, messages = record.get("prompt"), record.get("messages")
    if messages is None and isinstance(text, str):
        return Prompt(text=text, where=where)
    if text is None and _are_messages(messages):
        return Prompt(messages=tuple(messages), where=where)
    raise PromptError(f"{where}: {given.pop()} has the wrong shape; {_EXPECTED}")


def _are_messages(messages: Any) -> bool:  # any JSON value
    return (
        isinstance(messages, list)
        and len(messages) > 0
        and all(
            isinstance(m, dict) and m.keys() == {"role", "content"} and all(isinstance(v, str) for v in m.values())
            for m in messages
        )
    )


def encode_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> list[int]:
    """The prompt's token ids, as the policy reads them.

    A text gets the tokenizer's special tokens, but no second BOS, and none at its end, because the policy goes on from
    there; a chat is rendered by the template and gets none.

    Raises:
        PromptError: it has no tokens or more than `max_tokens`, or is a chat and the tokenizer has no template.
    """
    if prompt.messages is not None:
        if tokenizer.chat_template is None:
            raise PromptError(
                f"{prompt.where}: messages, but the policy's tokenizer has no chat template; add one, or give prompt"
            )
        text = tokenizer.apply_chat_template(list(prompt.messages), add_generation_prompt=True, tokenize=False)
        special = False
    else:
        text = prompt.text or ""
        special = tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token)
    encoded = tokenizer(text, add_special_tokens=special, return_special_tokens_mask=True)
    ids, added = list(encoded["input_ids"]), encoded["special_tokens_mask"]
    while special and len(ids) > 1 and added[len(ids) - 1]:
        ids.pop()
    if not 0 < len(ids) <= max_tokens:
        remedy = "raise max_prompt_tokens or leave the prompt out" if ids else "leave it out"
        raise PromptError(f"{prompt.where}: {len(ids)} tokens, limit 1 to {max_tokens} (max_prompt_tokens); {remedy}")
    return ids


def dealt_prompts(num_prompts: int, *, start: int, count: int, seed: int) -> list[int]:
    """Indices of the prompts of the rollouts `start` to `start + count`: shuffled passes, one after the other."""
    indices: list[int] = []
    for episode in range(start, start + count):
        epoch, offset = divmod(episode, num_prompts)
        if not indices or offset == 0:
            generator = seeded_generator(torch.device("cpu"), seed, "prompts", epoch)
            order = torch.randperm(num_prompts, generator=generator).tolist()
        indices.append(order[offset])
    return indices


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the left to the longest, and the mask of real tokens.

    Returns:
        ids shape (B, P) int64, mask shape (B, P) bool.
    """
    width = max(len(ids) for ids in sequences)
    ids = torch.tensor([[pad_id] * (width - len(ids)) + list(ids) for ids in sequences])
    mask = torch.tensor([[False] * (width - len(ids)) + [True] * len(ids) for ids in sequences])
    return ids, mask
