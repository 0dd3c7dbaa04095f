"""OpenAI's Responses as a chat: what was given to a policy and what it answered, up to its last turn. Pure.

As NeMo-Gym makes chats of them for a policy (nemo_gym/responses_converter.py), so that the reward model reads what the
policy did: `instructions` and the system messages at the beginning are one, and all that the policy says between two
others' messages is one turn. Deviations: reasoning is the turn's `reasoning_content`, for the template to show or to
leave out; `developer` is `system`, the role that templates know; arguments of calls are objects, as templates expect.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic_core

from plaudit_service.errors import InvalidRequest
from plaudit_service.http.dialects.chats import read_chat
from plaudit_service.items import ChatItem

_ROLES = {"system": "system", "developer": "system", "user": "user"}
_TEXT_PARTS = ("input_text", "output_text", "text")  # compared, since what is given may be of any type
_Turn = dict[str, Any]


@dataclass
class _Said:
    """What the policy has said since another's message."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    is_turn: bool = False

    def turn(self) -> _Turn:
        """One message of the assistant."""
        message: _Turn = {"role": "assistant", "content": "".join(self.texts)}
        if self.thoughts:
            message["reasoning_content"] = "\n".join(self.thoughts)
        if self.calls:
            message["tool_calls"] = self.calls
            message["content"] = message["content"] or None
        return message


def read_rollout(instructions: str | None, given: Any, output: Sequence[Any], *, finished: bool) -> ChatItem:
    """The chat up to the policy's last turn.

    Args:
        instructions: Of the request; None: there are none.
        given: The request's input, a text or a list of items.
        output: The response's.
        finished: Whether the policy ended by itself.

    Raises:
        InvalidRequest: the policy has said nothing, or an item is none that a chat template reads; it says where.
    """
    if not isinstance(given, str | list):
        raise InvalidRequest("responses_create_params.input: neither a text nor a list of items")
    if not any(map(_is_said, output)):
        raise InvalidRequest("response.output: the policy's output is empty, so there is nothing to score")
    entries = [{"role": "user", "content": given}] if isinstance(given, str) else given
    turns: list[_Turn] = []
    said = _Said()
    for where, items in (("responses_create_params.input", entries), ("response.output", output)):
        for number, item in enumerate(items):
            said = _take(item, f"{where}[{number}]", said, turns)
    if said.is_turn:
        turns.append(said.turn())
    last = max(at for at, turn in enumerate(turns) if turn["role"] == "assistant")
    turns = turns[: last + 1]
    if instructions:
        turns = _led(instructions, turns)
    messages = read_chat(turns, "chat")
    return ChatItem(messages=messages, finished=finished)


def _is_said(item: Any) -> bool:
    """Whether an item is the policy's."""
    if not isinstance(item, Mapping):
        return False
    return item.get("type") in ("reasoning", "function_call") or item.get("role") == "assistant"


def _take(item: Any, where: str, said: _Said, turns: list[_Turn]) -> _Said:
    """Add an item to what the policy says, or end its turn by another's message."""
    if not isinstance(item, Mapping):
        raise InvalidRequest(f"{where}: not an object")
    kind = item.get("type") or ("message" if item.get("role") else None)
    match kind, item.get("role"):
        case "message", "assistant":
            said.texts += _texts(item.get("content"), f"{where}.content")
            said.is_turn = True
        case "reasoning", _:
            said.thoughts += _thoughts(item, where)
            said.is_turn = True
        case "function_call", _:
            said.calls.append(_call(item, where))
            said.is_turn = True
        case "function_call_output", _:
            call = _text(item.get("call_id"), f"{where}.call_id")
            content = _joined(item.get("output"), f"{where}.output")
            return _end(said, turns, {"role": "tool", "tool_call_id": call, "content": content})
        case "message", str() as role if role in _ROLES:
            content = _joined(item.get("content"), f"{where}.content")
            return _end(said, turns, {"role": _ROLES[role], "content": content})
        case "message", role:
            raise InvalidRequest(f"{where}.role: {_shown(role)} is not one of assistant, {', '.join(_ROLES)}")
        case _:
            raise InvalidRequest(
                f"{where}.type: {_shown(kind)} is not a type that chat templates read (message, reasoning, "
                "function_call, function_call_output)"
            )
    return said


def _end(said: _Said, turns: list[_Turn], message: _Turn) -> _Said:
    if said.is_turn:
        turns.append(said.turn())
    turns.append(message)
    return _Said()


def _led(instructions: str, turns: list[_Turn]) -> list[_Turn]:
    """The chat with one system message at its beginning."""
    num_leading = next((at for at, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    texts = [instructions, *(turn["content"] for turn in turns[:num_leading])]
    return [{"role": "system", "content": "\n\n".join(texts)}, *turns[num_leading:]]


def _texts(content: Any, where: str) -> list[str]:
    """The texts of a content: one, or its parts."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}: neither a text nor a list of parts")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _TEXT_PARTS:
            raise InvalidRequest(
                f"{where}[{number}].type: {_shown(kind)} is not a text part, and a reward model reads only text"
            )
        texts.append(_text(part.get("text"), f"{where}[{number}].text"))
    return texts


def _joined(content: Any, where: str) -> str:
    """The only text of another's content: templates join several in different ways."""
    texts = _texts(content, where)
    if len(texts) != 1:
        raise InvalidRequest(f"{where}: {len(texts)} texts; give one")
    return texts[0]


def _thoughts(item: Mapping[str, Any], where: str) -> list[str]:
    """The texts of a reasoning item: its summary, which NeMo-Gym writes, or else its content."""
    name = "summary" if item.get("summary") else "content"
    parts = item.get(name) or []
    if not isinstance(parts, list):
        raise InvalidRequest(f"{where}.{name}: not a list")
    return [
        _text(part.get("text") if isinstance(part, Mapping) else part, f"{where}.{name}[{number}].text")
        for number, part in enumerate(parts)
    ]


def _call(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A call as chat templates read it; arguments that are no JSON object stay the text that the policy wrote."""
    name, call_id, written = (_text(item.get(key), f"{where}.{key}") for key in ("name", "call_id", "arguments"))
    try:
        arguments = pydantic_core.from_json(written, allow_inf_nan=False)
    except ValueError:
        arguments = written
    if not isinstance(arguments, dict):
        arguments = written
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}: not a text")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:40] if isinstance(value, str) else "what stands there"
