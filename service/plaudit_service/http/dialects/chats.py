"""Chats that stand where a trainer may also send something else: a text, or a label of any kind. Pure.

What looks like a chat is a chat or an error: taken for something else, another text than the trainer meant would be
scored. An object is a turn by its keys, `role` beside `content` or `tool_calls`; under any other keys (`from` beside
`value`, `role` beside `parts`, `Role`, or `role` alone) only where the name is one that data sets give to a speaker,
since `from` and `value` are edges of graphs and rates of currencies, too. An object that holds a list of turns as
`messages` or `conversations` is a chat, whatever else it says, unless it is a request to a model: `messages` beside
`model`.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic_core
from pydantic import Field, TypeAdapter, ValidationError

from plaudit_service.errors import InvalidRequest
from plaudit_service.items import MESSAGE_FIELDS, Message, first_problem

_CHAT = TypeAdapter(Annotated[list[Message], Field(min_length=1, fail_fast=True)])
_FORM = 'give a list of {"role", "content"}'
_BOM = "\ufeff"
_SPEAKERS = frozenset({"system", "user", "assistant", "tool", "developer", "human", "gpt", "function", "model"})
_SPEAKER_KEYS = ("role", "from")
_SAID_KEYS = frozenset({"content", "value", "parts", "text", "message", "tool_calls"})
_CHAT_KEYS = frozenset({"messages", "conversations", "conversation"})
# How turns begin that were written in another way than as JSON, such as Python's and NumPy's.
_WRITTEN_LIST = re.compile(r"""\s*(?:[\w.]{1,40}\(\s*)?[\[(]\s*\{\s*["']\w""")
_WRITTEN_OBJECT = re.compile(r"""\s*\{\s*["'](\w+)["']\s*:""")
_KEY = re.compile(r"""["'](\w+)["']\s*:""")
_SPEAKER = re.compile(r"""["'](role|from)["']\s*:\s*["'](\w+)["']""", re.IGNORECASE)
_LIST_OF_TURNS = re.compile(r"""["'](?:messages|conversations?)["']\s*:\s*(?:[\w.]{1,40}\(\s*)?\[\s*\{""")


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
        raise InvalidRequest(first_problem(error, where)[1]) from error


def find_chat(label: Any, where: str) -> list[Message] | None:
    """The chat that a label is, as a list or as its JSON text; None: the label is something else.

    Raises:
        InvalidRequest: it looks like a chat and cannot be used.
    """
    if not looks_like_chat(label):
        return None
    if isinstance(label, str) and (label := _parsed(label)) is None:
        raise InvalidRequest(f"{where}: looks like a chat written as text, but is not JSON; {_FORM}")
    if not isinstance(label, list) or isinstance(label[0], list):
        raise InvalidRequest(f"{where}: contains a chat, but is not itself a list of messages; {_FORM}")
    return read_chat(label, where)


def looks_like_chat(value: Any) -> bool:
    """Whether a value is a chat in any form that data sets have, right or wrong."""
    match value:
        case str():
            parsed = _parsed(value)
            return _is_written_chat(value.lstrip(_BOM)) if parsed is None else looks_like_chat(parsed)
        case list():
            return any(isinstance(entry, list | dict) and looks_like_chat(entry) for entry in value)
        case dict():
            return _is_turn(value) or any(map(looks_like_chat, _lists_of_turns(value)))
        case _:
            return False


def _is_turn(entry: Mapping[str, Any]) -> bool:
    if "role" in entry and not entry.keys().isdisjoint(("content", "tool_calls")):
        return True
    lower = {key.lower(): value for key, value in entry.items()}
    named = any(isinstance(name := lower.get(key), str) and name.lower() in _SPEAKERS for key in _SPEAKER_KEYS)
    return named and (not lower.keys().isdisjoint(_SAID_KEYS) or {"role"} <= lower.keys() <= {*MESSAGE_FIELDS})


def _lists_of_turns(entry: Mapping[str, Any]) -> list[Any]:
    is_request = {"model", "messages"} <= entry.keys()
    return [] if is_request else [value for key, value in entry.items() if key.lower() in _CHAT_KEYS]


def _is_written_chat(text: str) -> bool:
    """Whether a text that is no JSON begins as a list of turns, a turn, or an object that holds one.

    Its keys are taken together, since they cannot be told apart by object without a parser.
    """
    keys = dict.fromkeys(_KEY.findall(text))
    if _WRITTEN_LIST.match(text):
        return _is_turn(keys | dict(reversed(_SPEAKER.findall(text)))) or bool(_LIST_OF_TURNS.search(text))
    if (first := _WRITTEN_OBJECT.match(text)) is None:
        return False
    if first[1].lower() in {*_SPEAKER_KEYS, *_SAID_KEYS}:
        return _is_turn(keys | dict(reversed(_SPEAKER.findall(text))))
    return not {"model", "messages"} <= keys.keys() and bool(_LIST_OF_TURNS.search(text))


def _parsed(text: str) -> Any:
    """The list or object that a text is: JSON, perhaps dumped twice, or lines of JSON; None: it is none."""
    text = text.lstrip(_BOM).strip()
    if not text.startswith(("[", "{", '"')):
        return None
    try:
        value = pydantic_core.from_json(text)
    except ValueError:
        return _parsed_lines(text)
    return _parsed(value) if isinstance(value, str) else value


def _parsed_lines(text: str) -> list[Any] | None:
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 2 or not all(line.lstrip().startswith("{") for line in lines):
        return None
    try:
        return [pydantic_core.from_json(line) for line in lines]
    except ValueError:
        return None
