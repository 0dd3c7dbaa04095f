"""Prompts: read from rows in TRL's forms, encoded for the policy, and dealt out in a shuffled order.

A prompt is a function of its row and of the tokenizer: it knows no clock.
"""

import itertools
import json
import logging
import re
from collections import Counter
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
from plaudit_ppo.rollout.prompt_sources import EXPECTED, read_rows
from plaudit_ppo.rollout.seeding import seeded_generator

Message = Mapping[str, Any]

_log = logging.getLogger(__name__)
_SURROGATE = re.compile("[\ud800-\udfff]")
# Before a template: as in the service there is no clock, and a template that tests for one names another date.
_WITHOUT_CLOCK = "{% set strftime_now = no_clock %}\n"


class ChatTemplateError(ValueError):
    """A chat template refused messages, or failed on them."""


@dataclass(frozen=True)
class Prompt:
    """A prompt: a text, or the messages of a chat (exactly one of the two)."""

    text: str | None = None
    messages: tuple[Message, ...] | None = None
    where: str = field(default="prompt", compare=False)  # file and line, for error messages
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)  # what else its row holds
    source: int = field(default=0, compare=False)  # which of `prompts` it is from

    def __post_init__(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise PromptError(f"{self.where}: needs either a text or messages")


def read_prompts(sources: str | Path | Sequence[str]) -> list[Prompt]:
    """The prompts of one or several sources, in order; see the setting `prompts`. Empty lines are skipped.

    A row has one of TRL's formats: a text or a chat under `prompt`, or a chat under `messages`. In preference data
    without a prompt, the prompt is the messages that both chats begin with. All other keys of a row are kept in
    `columns`.

    Raises:
        PromptError: a source is missing or empty, or a row is not a prompt; the message names the row.
    """
    several = [str(sources)] if isinstance(sources, str | Path) else sources
    prompts = []
    for number, source in enumerate(several):
        of_source = [_parse(row, where, number) for where, row in read_rows(source)]
        if not of_source:
            raise PromptError(f"{source}: holds no prompts; {EXPECTED}")
        prompts += of_source
    return prompts


def _parse(row: Any, where: str, source: int) -> Prompt:
    if not isinstance(row, dict):
        raise PromptError(f"{where}: not an object ({type(row).__name__}); {EXPECTED}")
    shared = _prompt_of_pair(row, where)
    if shared is not None:
        messages = _messages(shared, f"{where}: chosen")
        return Prompt(messages=messages, where=where, columns=_columns(row), source=source)
    key, value = _own_prompt(row, where)
    columns = _columns({name: other for name, other in row.items() if name != key})
    if key == "prompt" and isinstance(value, str):
        if _SURROGATE.search(value):
            raise PromptError(f"{where}: prompt contains a lone surrogate, which is not a character; correct the text")
        return Prompt(text=value, where=where, columns=columns, source=source)
    return Prompt(messages=_messages(value, f"{where}: {key}"), where=where, columns=columns, source=source)


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is not null; a lone surrogate, which no file and no answer can hold, becomes the replacement character."""
    columns = {name: value for name, value in row.items() if value is not None}
    text = json.dumps(columns, ensure_ascii=False)
    return json.loads(_SURROGATE.sub("\ufffd", text)) if _SURROGATE.search(text) else columns


def _own_prompt(row: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """The column that holds the prompt, and its value."""
    given = [key for key in ("prompt", "messages") if row.get(key) is not None]
    if len(given) == 1:
        return given[0], row[given[0]]
    if {"chosen", "rejected"} <= row.keys() and not given:
        raise PromptError(
            f"{where}: chosen and rejected are two texts without their prompt, so it is not known where the "
            "prompt ends; add a column prompt"
        )
    keys = ", ".join(row) or "none"
    raise PromptError(f"{where}: needs either prompt or messages, has the keys {keys}; {EXPECTED}")


def _prompt_of_pair(row: Mapping[str, Any], where: str) -> list[Any] | None:
    """What the two chats of a preference pair begin with, as TRL's extract_prompt.

    Such a pair has no prompt, or one that is a text for people. None: the row is no such pair.
    """
    chosen, rejected, prompt = (row.get(name) for name in ("chosen", "rejected", "prompt"))
    if not (isinstance(chosen, list) and isinstance(rejected, list)) or isinstance(prompt, list):
        return None
    if not chosen and not rejected:
        return None
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = [message for message, _ in same]
    if not shared:
        raise PromptError(
            f"{where}: chosen and rejected begin with different messages, so they have no prompt in common"
        )
    return shared


def _messages(value: Any, where: str) -> tuple[Message, ...]:  # any JSON value
    """A chat, as the scorer's client takes it; a text in parts becomes a text, which every template reads."""
    try:
        messages = normalize_messages(value, where)
    except InvalidArgument as error:
        raise PromptError(f"{error}; {EXPECTED}") from error
    for message in messages:
        if isinstance(content := message.get("content"), list):
            message["content"] = content[0]["text"]
    return tuple(messages)


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts with their token ids, and those that were too long and are not among them."""

    prompts: Sequence[Prompt] = ()
    ids: Sequence[list[int]] = ()
    dropped: Sequence[Prompt] = ()


def describe_prompts(encoded: EncodedPrompts, sources: Sequence[str]) -> list[str]:
    """A line on each source: how many prompts, how long, how many left out.

    Args:
        encoded: of all sources.
        sources: their names.
    """
    dropped, lines = Counter(prompt.source for prompt in encoded.dropped), []
    for number, name in enumerate(sources):
        of_source = zip(encoded.prompts, encoded.ids, strict=True)
        lengths = [len(ids) for prompt, ids in of_source if prompt.source == number]
        extent = (
            f"{min(lengths)} to {max(lengths)} tokens, {sum(lengths) / len(lengths):.3g} in the mean; "
            if lengths
            else ""
        )
        lines.append(f"{len(lengths)} prompts of {name}: {extent}{dropped[number]} longer ones left out")
    return lines


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, drop_long: bool = False
) -> EncodedPrompts:
    """All prompts as the policy reads them; how many are left out is logged.

    Args:
        prompts: at least one.
        tokenizer: the policy's.
        max_tokens: limit of each.
        drop_long: leave out those that are longer.

    Raises:
        PromptError: as `encode_prompt`; or all are dropped.
    """
    kept, ids, dropped = [], [], []
    for prompt in prompts:
        encoded = encode_prompt(prompt, tokenizer, max_tokens=None if drop_long else max_tokens)
        if len(encoded) <= max_tokens:
            kept.append(prompt)
            ids.append(encoded)
        else:
            dropped.append(prompt)
    if not kept:
        raise PromptError(
            f"all {len(prompts)} prompts have more than {max_tokens} tokens (max_prompt_tokens); raise it"
        )
    if dropped:
        _log.warning(
            "%d of %d prompts have more than %d tokens (max_prompt_tokens) and are left out, the first: %s",
            len(dropped),
            len(prompts),
            max_tokens,
            dropped[0].where,
        )
    return EncodedPrompts(kept, ids, dropped)


def encode_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int | None) -> list[int]:
    """The prompt's token ids, as the policy reads them.

    A text gets the tokenizer's special tokens, but no second BOS, and none at its end, because the policy goes on from
    there; a chat is rendered by the template and gets none.

    Args:
        prompt: a text or a chat.
        tokenizer: the policy's.
        max_tokens: None: no limit.

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
    if not ids:
        raise PromptError(f"{prompt.where}: 0 tokens, limit 1 to {max_tokens} (max_prompt_tokens); leave it out")
    if max_tokens is not None and len(ids) > max_tokens:
        raise PromptError(
            f"{prompt.where}: {len(ids)} tokens, limit 1 to {max_tokens} (max_prompt_tokens); raise max_prompt_tokens, "
            'leave the prompt out, or set long_prompts = "drop"'
        )
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
                "the policy's chat template asks for today's date (strftime_now), and prompts must not change from "
                "one day to the next; write a fixed date into the template"
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


def count_by_source(prompts: Sequence[Prompt], num_sources: int) -> list[int]:
    """How many prompts each of the first sources has; they lie one source after the other.

    Raises:
        PromptError: one has none, so that its weight cannot be kept.
    """
    counted = Counter(prompt.source for prompt in prompts)
    for number in range(num_sources):
        if not counted[number]:
            raise PromptError(
                f"prompts[{number}]: all prompts of this source were left out as too long, but it has a weight "
                "(prompt_weights); raise max_prompt_tokens, or remove the source and its weight"
            )
    return [counted[number] for number in range(num_sources)]


def mixed_prompts(sizes: Sequence[int], weights: Sequence[float], *, start: int, count: int, seed: int) -> list[int]:
    """As `dealt_prompts`, of several sources that lie one after the other, each with a share of the rollouts.

    A pass has as many rollouts as there are prompts, of each source the share of its weight to the nearest whole one.
    A source goes through shuffled passes of its own, one after the other, and what it gives to a pass is mixed with the
    others'. So a small source with a large weight is dealt more than once, and the order does not depend on `start`.

    Args:
        sizes: how many prompts each source has.
        weights: of the sources; only their ratios count.
        start: the first rollout.
        count: how many rollouts.
        seed: of the run.
    """
    quotas = _quotas(sum(sizes), weights)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    indices: list[int] = []
    first, last = start // sum(sizes), (start + count - 1) // sum(sizes)
    for turn in range(first, last + 1):
        dealt = [
            starts[number] + index
            for number, (size, quota) in enumerate(zip(sizes, quotas, strict=True))
            for index in dealt_prompts(size, start=turn * quota, count=quota, seed=seed + number)
        ]
        generator = seeded_generator(torch.device("cpu"), seed, "mixed prompts", turn)
        indices += [dealt[place] for place in torch.randperm(len(dealt), generator=generator).tolist()]
    return indices[start - first * sum(sizes) :][:count]


def _quotas(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in the ratio of the weights that add up to the total; the largest rests are rounded up."""
    exact = [total * weight / sum(weights) for weight in weights]
    quotas = [int(quota) for quota in exact]
    by_rest = sorted(range(len(exact)), key=lambda number: quotas[number] - exact[number])
    for number in by_rest[: total - sum(quotas)]:
        quotas[number] += 1
    return quotas


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the left to the longest, and the mask of real tokens.

    Returns:
        ids shape (B, P) int64, mask shape (B, P) bool.
    """
    width = max(len(ids) for ids in sequences)
    ids = torch.tensor([[pad_id] * (width - len(ids)) + list(ids) for ids in sequences])
    mask = torch.tensor([[False] * (width - len(ids)) + [True] * len(ids) for ids in sequences])
    return ids, mask
