"""Prompts: read from a JSONL file, encoded for the policy, and dealt out in a shuffled order.

A prompt is a function of its file and of the tokenizer: it knows no clock.
"""

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import torch
from transformers import PreTrainedTokenizerBase

from plaudit_client import InvalidArgument
from plaudit_client.items import normalize_messages
from plaudit_ppo.errors import PromptError
from plaudit_ppo.rollout.seeding import seeded_generator

_EXPECTED = (
    'each line is {"prompt": "..."}, or {"messages": [{"role": "...", "content": "..."}]} with the messages under '
    "prompt or messages"
)
Message = Mapping[str, Any]

_SURROGATE = re.compile("[\ud800-\udfff]")
# Before a template: as in the service there is no clock, and a template that tests for one names another date.
_WITHOUT_CLOCK = "{% set strftime_now = no_clock %}\n"


class ChatTemplateError(ValueError):
    """A chat template refused messages, or failed on them."""


@dataclass(frozen=True)
class Prompt:
    """What a completion answers: a text, or the messages of a chat (exactly one of the two)."""

    text: str | None = None
    messages: tuple[Message, ...] | None = None
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
    if not isinstance(record, dict):
        raise PromptError(f"{where}: not an object ({type(record).__name__}); {_EXPECTED}")
    given = [key for key in ("prompt", "messages") if record.get(key) is not None]
    if len(given) != 1:
        keys = ", ".join(record) or "none"
        raise PromptError(f"{where}: needs either prompt or messages, has the keys {keys}; {_EXPECTED}")
    (key,) = given
    value = record[key]
    if key == "prompt" and isinstance(value, str):
        if _SURROGATE.search(value):
            raise PromptError(f"{where}: prompt has a lone surrogate, which is no character; mend the text")
        return Prompt(text=value, where=where)
    return Prompt(messages=_messages(value, f"{where}: {key}"), where=where)


def _messages(value: Any, where: str) -> tuple[Message, ...]:  # any JSON value
    """A chat, as the scorer's client takes it; a text in parts becomes a text, which every template reads."""
    try:
        messages = normalize_messages(value, where)
    except InvalidArgument as error:
        raise PromptError(f"{error}; {_EXPECTED}") from error
    for message in messages:
        if isinstance(content := message.get("content"), list):
            message["content"] = content[0]["text"]
    return tuple(messages)


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
        try:
            text = render_chat(prompt.messages, tokenizer, add_generation_prompt=True)
        except ChatTemplateError as error:
            raise PromptError(f"{prompt.where}: {error}") from error
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


def render_chat(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool) -> str:
    """A chat as the tokenizer's template writes it.

    Deviation from transformers: there is no clock (`strftime_now`), or a run that is resumed on another day would have
    other prompts. A template that tests for it falls back to the date that it names.

    Raises:
        ChatTemplateError: the template refused the messages, or failed on them.
    """
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            chat_template=_WITHOUT_CLOCK + tokenizer.get_chat_template(),
        )
    except Exception as error:  # a template is a program from outside: it can raise anything
        if isinstance(error, jinja2.UndefinedError) and "no_clock" in str(error):
            raise ChatTemplateError(
                "the policy's chat template asks for today's date (strftime_now), and prompts must not change from one "
                "day to the next; write a date into the template"
            ) from error
        raise ChatTemplateError(f"the policy's chat template failed on it ({error})") from error
    return str(text)


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
