"""slime, `--rm-type remote_rm --rm-url http://host:8000/slime`. Source: slime/rollout/rm_hub/__init__.py."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from plaudit_service.http.dialects.dialect import Answered, Asked, Dialect, Shape, parse
from plaudit_service.http.dialects.special_tokens import strip_end
from plaudit_service.items import ChatItem, Item, Message, PromptItem


class _Body(Shape):
    prompt: str | Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    response: str


def read(body: bytes, parameters: Mapping[str, str]) -> Asked:
    """One rollout; a prompt that is a chat is rendered by the reward model's own template.

    `?reward_key=score` in the URL asks for an object with that key, as slime's `--reward-key score` needs.
    """
    asked = parse(_Body, body)
    key = parameters.get("reward_key")

    def write(answered: Answered) -> Any:
        (score,) = answered.scores
        return score if key is None else {key: score}

    return Asked([_item(asked)], write)


def _item(asked: _Body) -> Item:
    if isinstance(asked.prompt, str):
        return PromptItem(prompt=asked.prompt, completion=asked.response, finished=False)
    completion, finished = strip_end(asked.response)
    return ChatItem(messages=asked.prompt, completions=[completion], finished=finished)


DIALECT = Dialect(
    "/slime",
    read,
    _Body,
    float | dict[str, float],
    {"reward_key": "Answer an object with this key instead of a number"},
)
