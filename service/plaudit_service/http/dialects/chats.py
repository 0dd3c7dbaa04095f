"""Chats that stand where a trainer may also send something else: a text, or a label of any kind. Pure.

What looks like a chat is a chat or an error: taken for something else, another text than the trainer meant would be
scored.
"""

import re
from collections.abc import Set
from typing import Annotated, Any

import pydantic_core
from pydantic import Field, TypeAdapter, ValidationError

from plaudit_service.errors import InvalidRequest
from plaudit_service.items import Message, place

_CHAT = TypeAdapter(Annotated[list[Message], Field(min_length=1, fail_fast=True)])
_FORM = 'give a list of {"role", "content"}'
# The keys of a turn in the usual data sets, and of the list of turns.
_TURN_KEYS = (frozenset({"role", "content"}), frozenset({"role", "tool_calls"}), frozenset({"from", "value"}))
_CHAT_KEYS = frozenset({"messages", "conversations", "conversation"})
# How a list of turns begins that was written in another way than as JSON, such as Python's.
_WRITTEN = re.compile(r"""\s*\[\s*\{\s*["'](?:role|content|from|value)["']\s*:""")
_KEY = re.compile(r"""["'](\w+)["']\s*:""")


def read_chat(value: Any, where: str) -> list[Message]:
    """Check a chat.

    Args:
        value: A list of messages, as JSON gives it.
        where: Begins the message of an error.

    Raises:
        InvalidRequest: it cannot be used; the message says why.
    """
    try:
        return _CHAT.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        keys = place(first["loc"])
        between = "." if keys and not keys.startswith("[") else ""
        raise InvalidRequest(f"{where}{between}{keys}: {first['msg']}") from error


def find_chat(label: Any, where: str) -> list[Message] | None:
    """The chat that a label is, as a list or as its JSON text; None: the label is something else.

    Raises:
        InvalidRequest: it looks like a chat and cannot be used.
    """
    if not looks_like_chat(label):
        return None
    if isinstance(label, str) and (label := _parsed(label)) is None:
        raise InvalidRequest(f"{where}: looks like a chat that was written as text, and is no JSON; {_FORM}")
    if not isinstance(label, list) or isinstance(label[0], list):
        raise InvalidRequest(f"{where}: holds a chat and is none; {_FORM}")
    return read_chat(label, where)


def looks_like_chat(value: Any) -> bool:
    """Whether a value is a chat in any form that data sets have, right or wrong."""
    match value:
        case str():
            parsed = _parsed(value)
            if parsed is None and _WRITTEN.match(value):
                return _is_turn(set(_KEY.findall(value)))
            return looks_like_chat(parsed)
        case list():
            return any(isinstance(entry, list | dict) and looks_like_chat(entry) for entry in value)
        case dict():
            return _is_turn(value.keys()) or (value.keys() <= _CHAT_KEYS and any(map(looks_like_chat, value.values())))
        case _:
            return False


def _is_turn(keys: Set[str]) -> bool:
    return any(turn <= keys for turn in _TURN_KEYS)


def _parsed(text: str) -> Any:
    """The list or object that a JSON text is; None: it is none."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        return pydantic_core.from_json(text)
    except ValueError:
        return None
