"""vLLM's `POST /classify` of a reward model, which verl's DisRM and others speak."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from plaudit_service.errors import InvalidRequest
from plaudit_service.http.dialects.dialect import Answered, Asked, DialectRoute, Shape, parse
from plaudit_service.http.dialects.special_tokens import SpecialTokens
from plaudit_service.items import MAX_ITEMS, ChatItem, Item, Message, TextItem, TokenItem

_TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_Entry = TypeVar("_Entry")
_Several = Annotated[list[_Entry], Field(fail_fast=True)]
Texts = str | _Several[str]
TokenIds = _Several[_TokenId] | _Several[_Several[_TokenId]]
TextsOrTokens = Texts | TokenIds


class Body(Shape):
    """A body of `/classify`."""

    # Fields that are not here could change what vLLM would compute, so they are refused.
    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    input: TextsOrTokens | None = None
    messages: list[Message] | None = Field(None, min_length=1, fail_fast=True)
    use_activation: bool | None = None
    user: str | None = None


def read(body: bytes, _: Mapping[str, str], __: SpecialTokens) -> Asked:
    """Texts, token ids, or one chat; `use_activation` false: scores as the operator set them, else sigmoids."""
    asked = parse(Body, body)
    if (asked.input is None) == (asked.messages is None):
        raise InvalidRequest("body: give either input or messages")
    items: list[Item] = [ChatItem(messages=asked.messages)] if asked.messages else items_of("input", asked.input)
    if asked.use_activation is False:
        return Asked(items, lambda answered: write(answered, answered.scores), model=asked.model)
    # vLLM's activation is of the model's own output: normalization has no place before it.
    return Asked(items, lambda answered: write(answered, map(sigmoid, answered.scores)), model=asked.model, raw=True)


def write(answered: Answered, values: Any) -> dict[str, Any]:
    """One class, whose `probs` holds the score."""
    tokens = sum(answered.num_tokens)
    return {
        "id": f"classify-{answered.id}",
        "object": "list",
        "created": answered.created_s,
        "model": answered.model.name,
        "data": [
            {"index": index, "label": "LABEL_0", "probs": [value], "num_classes": 1}
            for index, value in enumerate(values)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), for values of any size."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def items_of(name: str, given: Any) -> list[Item]:
    """Texts as they stand, or token ids.

    Args:
        name: The field.
        given: Its value, one of `TextsOrTokens`.

    Raises:
        InvalidRequest: there are too many.
    """
    entries = [given] if is_single(given) else given
    if len(entries) > MAX_ITEMS:
        raise InvalidRequest(f"{name}: {len(entries)} entries, limit {MAX_ITEMS}; split it")
    return [
        TextItem(text=entry, finished=False) if isinstance(entry, str) else TokenItem(token_ids=entry)
        for entry in entries
    ]


def is_single(given: Any) -> bool:
    """Whether a value of `TextsOrTokens` makes one sequence, and no list."""
    return isinstance(given, str) or bool(given and isinstance(given[0], int))


class _Class(BaseModel):
    index: int
    label: str
    probs: list[float]
    num_classes: Literal[1]


class Answer(BaseModel):
    """An answer of `/classify`."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[_Class]
    usage: dict[str, int]


CLASSIFY = DialectRoute("/classify", "vllm", read, Body, Answer)
ROUTES = (CLASSIFY,)
