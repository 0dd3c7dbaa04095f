"""slime, `--rm-type remote_rm --rm-url http://host:8000/slime`. Source: slime/rollout/rm_hub/__init__.py."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, SkipValidation

from plaudit_service.errors import InvalidRequest
from plaudit_service.http.dialects.chats import looks_like_chat, read_chat
from plaudit_service.http.dialects.dialect import Answered, Asked, DialectRoute, Shape, parse
from plaudit_service.http.dialects.special_tokens import SpecialTokens, strip_end
from plaudit_service.items import ChatItem, Item, Message, PromptItem


class _Body(Shape):
    # Checked below: of a union, an error would tell why it is not the other form.
    prompt: SkipValidation[str | Annotated[list[Message], Field(min_length=1)]]
    response: str


def read(body: bytes, parameters: Mapping[str, str], tokens: SpecialTokens) -> Asked:
    """One rollout; a prompt that is a chat is rendered by the reward model's own template.

    `?reward_key=score` in the URL asks for an object with that key, as slime's `--reward-key score` needs.
    """
    asked = parse(_Body, body)
    key = parameters.get("reward_key")

    def write(answered: Answered) -> Any:
        (score,) = answered.scores
        return score if key is None else {key: score}

    return Asked([_item(asked, tokens)], write)


def _item(asked: _Body, tokens: SpecialTokens) -> Item:
    if isinstance(asked.prompt, str):
        if looks_like_chat(asked.prompt):
            raise InvalidRequest("prompt: looks like a chat that was written as text; send the list itself")
        return PromptItem(prompt=asked.prompt, completion=asked.response, finished=False)
    completion, finished = strip_end(asked.response, tokens)
    return ChatItem(messages=read_chat(asked.prompt, "prompt"), completions=[completion], finished=finished)


ROUTES = (
    DialectRoute(
        "/slime",
        "slime",
        read,
        _Body,
        float | dict[str, float],
        {"reward_key": "Answer an object with this key instead of a number"},
    ),
)
