"""Rollouts in the form that `/score` takes, and what can be read from it again."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from plaudit_ppo.rollout.prompts import Prompt
from plaudit_ppo.rollout.rollouts import Rollouts, completion_texts

Item = Mapping[str, Any]


def prompt_part(prompt: Prompt) -> Item:
    """The prompt, as `/score` takes it in every form of an item: a text, or a chat's messages."""
    return {"prompt": prompt.text} if prompt.messages is None else {"messages": list(prompt.messages)}


def to_item(prompt: Prompt, completion: str, *, finished: bool) -> Item:
    """One rollout in the form that `/score` takes; `finished` False means cut by length, so that no EOS is appended."""
    answer: Item = {"completion": completion} if prompt.messages is None else {"completions": [completion]}
    return {**prompt_part(prompt), **answer, "finished": finished}


def to_items(
    rollouts: Rollouts,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    send_eos_text: bool,
    stop: Sequence[str] = (),
) -> list[Item]:
    """The rollouts in the form that `/score` takes; a chat never gets the EOS text, its template ends the turn."""
    with_eos = [send_eos_text and prompt.messages is None for prompt in prompts]
    texts = completion_texts(rollouts, tokenizer, with_eos=with_eos, stop=stop)
    finished = rollouts.finished.tolist()
    return [to_item(prompt, text, finished=ended) for prompt, text, ended in zip(prompts, texts, finished, strict=True)]


def grouped(items: Sequence[Item], *, size: int) -> tuple[list[Item], list[int], list[int]]:
    """Rollouts as they are sent: those of one prompt as one item with several completions.

    The service computes the prompt of such an item once. `finished` is said of a whole item, so a group in which some
    completions have ended and others were cut is sent as two.

    Args:
        items: of `to_item`, whole groups of rollouts of one prompt, one group after the other.
        size: rollouts of a group; 1: they are sent as they are.

    Returns:
        What is sent; for each rollout, where its result is among the results; for each item that is sent, its first
        rollout.
    """
    if size == 1:
        rows = list(range(len(items)))
        return list(items), rows, rows
    sent: list[Item] = []
    order: list[int] = []
    firsts: list[int] = []
    for first in range(0, len(items), size):
        for finished in (True, False):
            rows = [row for row in range(first, first + size) if items[row]["finished"] == finished]
            if rows:
                shared = {key: items[rows[0]][key] for key in ("prompt", "messages") if key in items[rows[0]]}
                completions = [completion_of(items[row]) for row in rows]
                sent.append({**shared, "completions": completions, "finished": finished})
                order += rows
                firsts.append(rows[0])
    return sent, sorted(range(len(order)), key=order.__getitem__), firsts


def prompt_of(item: Item) -> str:
    """The prompt's text in an item of `to_item`; of a chat, one paragraph per message."""
    if "messages" in item:
        return "\n".join(f"{message['role']}: {message.get('content', '')}" for message in item["messages"])
    return str(item["prompt"])


def completion_of(item: Item) -> str:
    """The completion's text in an item of `to_item`."""
    return str(item["completions"][0] if "messages" in item else item["completion"])
