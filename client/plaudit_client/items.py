"""The items that can be scored: their forms, their check, how many sequences each makes.

Checks keys and types, so that a mistake is named by its index in the caller's list, which the service never sees.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Required, TypedDict

from plaudit_client.errors import InvalidArgument


class Message(TypedDict, total=False):
    """One message of a chat, with the fields that chat templates read. A field that is None counts as missing."""

    role: Required[str]
    content: str | list[dict[str, Any]] | None  # or one part, {"type": "text", "text": ...}; None beside tool_calls
    reasoning_content: str | None
    thinking: str | None
    tool_calls: list[dict[str, Any]] | None
    tool_call_id: str | None
    name: str | None


class _Finished(TypedDict, total=False):
    finished: bool  # False: the completion was cut by length, so the service appends no EOS


class TextItem(_Finished):
    """One text, scored as it is."""

    text: str


class CompletionItem(_Finished):
    """A prompt and its completion, concatenated as they are."""

    prompt: str
    completion: str


class CompletionsItem(_Finished):
    """A prompt with several completions: a group, one score for each."""

    prompt: str
    completions: list[str]


class StepsItem(_Finished):
    """A prompt and its completion in steps, concatenated as the reward model reads steps."""

    prompt: str
    steps: list[str]


class ChatItem(_Finished):
    """A whole chat."""

    messages: list[Message]


class ChatCompletionsItem(_Finished):
    """A chat with several completions, each an assistant's message: a group."""

    messages: list[Message]
    completions: list[str]


class ChatStepsItem(_Finished):
    """A chat with one completion in steps, an assistant's message."""

    messages: list[Message]
    steps: list[str]


class TokenIdsItem(_Finished):
    """Token ids of the reward model's own tokenizer, used as they are."""

    token_ids: list[int]


Item = (
    TextItem
    | CompletionItem
    | CompletionsItem
    | StepsItem
    | ChatItem
    | ChatCompletionsItem
    | ChatStepsItem
    | TokenIdsItem
)
ItemLike = str | Item | Mapping[str, Any]

FORMS = (
    frozenset({"text"}),
    frozenset({"prompt", "completion"}),
    frozenset({"prompt", "completions"}),
    frozenset({"prompt", "steps"}),
    frozenset({"messages"}),
    frozenset({"messages", "completions"}),
    frozenset({"messages", "steps"}),
    frozenset({"token_ids"}),
)
_SURROGATE = re.compile("[\ud800-\udfff]")
WIRE_FIELDS = frozenset({"finished"}).union(*FORMS)
MESSAGE_FIELDS = frozenset(Message.__annotations__)
_CHARS_OF_NUMBER = 8


def normalize_items(items: Sequence[ItemLike]) -> list[dict[str, Any]]:
    """Bring every item into its wire form.

    Args:
        items: Texts, or mappings of one of the wire forms.

    Returns:
        One dict per item, ready for JSON.

    Raises:
        InvalidArgument: An item has a wrong shape; the message says which and what would be right.
    """
    if isinstance(items, str | bytes | Mapping):
        raise InvalidArgument(f"items: got one {type(items).__name__}; give a list of items, as in [item]")
    return [normalize_item(item, f"items[{index}]") for index, item in enumerate(items)]


def normalize_item(item: ItemLike, where: str) -> dict[str, Any]:
    """Bring one item into its wire form; `where` begins the message of an error."""
    if isinstance(item, str):
        item = {"text": item}
    if not isinstance(item, Mapping):
        raise InvalidArgument(f"{where}: got {type(item).__name__}; give a str, or a dict with one of {_forms()}")
    keys = item.keys() - {"finished"}
    if keys not in FORMS:
        raise InvalidArgument(
            f"{where}: has the keys {_join(map(str, item))}; give one of {_forms()}, and optionally finished"
        )
    for key, value in item.items():
        expected, is_right = _CHECKS[key]
        if not is_right(value):
            raise InvalidArgument(f"{where}.{key}: got {_describe(value)}; give {expected}")
    wire = dict(item)
    if "messages" in wire:
        wire["messages"] = normalize_messages(wire["messages"], f"{where}.messages")
    return wire


def normalize_messages(messages: object, where: str) -> list[dict[str, Any]]:
    """Bring a chat into its wire form: without the fields that are None, also those inside of tool calls.

    Args:
        messages: A list of at least one message.
        where: Begins the message of an error.

    Raises:
        InvalidArgument: It is something else; the message names the field.
    """
    expected, is_right = _CHECKS["messages"]
    if not is_right(messages):
        raise InvalidArgument(f"{where}: got {_describe(messages)}; give {expected}")
    assert isinstance(messages, list)
    return [_normalize_message(message, f"{where}[{index}]") for index, message in enumerate(messages)]


def _normalize_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    wire = {key: value for key, value in message.items() if value is not None}
    for key, value in wire.items():
        if key not in MESSAGE_FIELDS:
            known = ", ".join(sorted(MESSAGE_FIELDS))
            raise InvalidArgument(f"{where}.{key}: not a field of a message; leave it out, or give one of {known}")
        expected, is_right = _MESSAGE_CHECKS.get(key, ("a str", _is_str))
        if not is_right(value):
            raise InvalidArgument(f"{where}.{key}: got {_describe(value)}; give {expected}")
    if missing := {"role", "content"} - wire.keys():
        key = max(missing)
        if key == "role" or not wire.get("tool_calls"):
            raise InvalidArgument(f"{where}.{key}: missing; give {_MESSAGE_CHECKS.get(key, ('a str',))[0]}")
    if "tool_calls" in wire:
        wire["tool_calls"] = _without_nones(wire["tool_calls"])
    return wire


def _without_nones(value: Any) -> Any:
    """A JSON value without the keys that tables add to dicts, as TRL's `remove_none_values`; lists stay as long."""
    if isinstance(value, list):
        return list(map(_without_nones, value))
    if isinstance(value, dict):
        return {key: _without_nones(inner) for key, inner in value.items() if inner is not None}
    return value


def num_sequences(item: Mapping[str, Any]) -> int:
    """How many sequences, and so scores, a normalized item makes."""
    return len(item["completions"]) if "completions" in item else 1


def num_chars(item: Mapping[str, Any]) -> int:
    """Characters (or ids) of all sequences of a normalized item, a group's prompt counted for each of them."""
    shared = len(item.get("prompt", "")) + len(item.get("token_ids", ()))
    shared += sum(_num_chars(value) for message in item.get("messages", ()) for value in message.values())
    own = [item.get("text", ""), item.get("completion", ""), *item.get("completions", ()), *item.get("steps", ())]
    return shared * num_sequences(item) + sum(map(len, own))


def _num_chars(value: object) -> int:
    """About the characters of a JSON value, as the service counts them."""
    if isinstance(value, dict):
        return sum(len(key) + _num_chars(inner) for key, inner in value.items())
    if isinstance(value, list):
        return sum(map(_num_chars, value))
    return len(value) if isinstance(value, str) else _CHARS_OF_NUMBER


def _is_content(value: object) -> bool:
    if not isinstance(value, list):
        return _is_str(value)
    parts = [part for part in value if isinstance(part, dict)]
    known = [{key: entry for key, entry in part.items() if entry is not None} for part in parts]
    return len(value) == len(known) == 1 and known[0].keys() == {"type", "text"} and known[0]["type"] == "text"


def _is_token_id(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_filled_list(value: object, is_right: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_right, value))


def _is_str(value: object) -> bool:
    """A lone surrogate is no text: the service would refuse the whole request for it, without saying where."""
    return isinstance(value, str) and (value.isascii() or not _SURROGATE.search(value))


_CHECKS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "text": ("a str", _is_str),
    "prompt": ("a str", _is_str),
    "completion": ("a str", _is_str),
    "completions": ("a list of at least one str", lambda value: _is_filled_list(value, _is_str)),
    "steps": ("a list of at least one str", lambda value: _is_filled_list(value, _is_str)),
    "messages": (
        'a list of at least one {"role": str, "content": str}',
        lambda value: _is_filled_list(value, lambda entry: isinstance(entry, Mapping)),
    ),
    "token_ids": ("a list of non-negative int", lambda value: value == [] or _is_filled_list(value, _is_token_id)),
    "finished": ("true or false", lambda value: isinstance(value, bool)),
}

_MESSAGE_CHECKS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "content": ('a str, or a list of one {"type": "text", "text": str}', _is_content),
    "tool_calls": (
        "a list of dicts",
        lambda value: isinstance(value, list) and all(isinstance(entry, dict) for entry in value),
    ),
}


def _describe(value: object) -> str:
    """The type of a value, never its text: prompts do not belong in logs."""
    if isinstance(value, str) and not _is_str(value):
        return "a str with a lone surrogate"
    if isinstance(value, list):
        return f"a list of {_join({type(entry).__name__ for entry in value})}" if value else "an empty list"
    return type(value).__name__


def _forms() -> str:
    return ", ".join("+".join(sorted(form, reverse=True)) for form in FORMS)


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
