"""Rollouts in the form that `/score` takes, and what can be read from it again."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from plaudit_ppo.rollout.prompts import Prompt
from plaudit_ppo.rollout.rollouts import Rollouts, completion_texts

Item = Mapping[str, Any]


def to_item(prompt: Prompt, completion: str, *, finished: bool) -> Item:
    """One rollout in the form that `/score` takes; `finished` False means cut by length, so that no EOS is appended."""
    if prompt.messages is not None:
        return {"messages": list(prompt.messages), "completions": [completion], "finished": finished}
    return {"prompt": prompt.text, "completion": completion, "finished": finished}


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


def prompt_of(item: Item) -> str:
    """The prompt's text in an item of `to_item`; of a chat, one paragraph per message."""
    if "messages" in item:
        return "\n".join(f"{message['role']}: {message.get('content', '')}" for message in item["messages"])
    return str(item["prompt"])


def completion_of(item: Item) -> str:
    """The completion's text in an item of `to_item`."""
    return str(item["completions"][0] if "messages" in item else item["completion"])
