"""vLLM's `POST /classify` of a reward model, which verl's DisRM and others speak, and `POST /pooling` of its tokens.

Source: vllm/entrypoints/pooling and vllm/model_executor/layers/pooler of vLLM 0.32. `/pooling` gives a row of
activated labels for each token (pooling type ALL), or for each step of a process reward model (STEP).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from plaudit_service.errors import InvalidRequest
from plaudit_service.http.dialects.dialect import Answered, Asked, Chosen, DialectRoute, Shape, parse
from plaudit_service.http.dialects.special_tokens import SpecialTokens
from plaudit_service.items import MAX_ITEMS, ChatItem, Item, Message, TextItem, TokenItem

_TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_Entry = TypeVar("_Entry")
_Several = Annotated[list[_Entry], Field(fail_fast=True)]
Texts = str | _Several[str]
TokenIds = _Several[_TokenId] | _Several[_Several[_TokenId]]
TextsOrTokens = Texts | TokenIds


class _Input(Shape):
    # Fields that are not here could change what vLLM would compute, so they are refused.
    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    input: TextsOrTokens | None = None
    messages: list[Message] | None = Field(None, min_length=1, fail_fast=True)
    use_activation: bool | None = None
    user: str | None = None


class Body(_Input):
    """A body of `/classify`."""


class PoolingBody(_Input):
    """A body of `/pooling`."""

    task: Literal["token_classify"] | None = None
    encoding_format: Literal["float"] | None = None


def read(body: bytes, _: Mapping[str, str], __: SpecialTokens) -> Asked:
    """Texts, token ids, or one chat; `use_activation` false: scores as the operator set them, else sigmoids."""
    asked = parse(Body, body)
    items = _items(asked, finished=True)
    if asked.use_activation is False:
        return Asked(
            items, lambda answered: write(answered, answered.scores), model=asked.model, check=_refuse_probability
        )
    # vLLM's activation is of the model's own output: normalization has no place before it.
    return Asked(
        items,
        lambda answered: write(answered, map(sigmoid, answered.scores)),
        model=asked.model,
        raw=True,
        check=_refuse_probability,
    )


def read_pooling(body: bytes, _: Mapping[str, str], __: SpecialTokens) -> Asked:
    """Texts, token ids, or one chat, as they stand; of each what the model gives at its steps, or at all its tokens."""
    asked = parse(PoolingBody, body)
    is_activated = asked.use_activation is not False

    def check(model: Chosen) -> None:
        if model.good is None and len(model.labels) > 1:
            raise InvalidRequest(
                f'model "{model.name}" combines {len(model.labels)} outputs into one score, but /pooling would return '
                "each output at each token; use /score"
            )
        if model.good is not None and not is_activated:
            raise InvalidRequest(
                f'use_activation: model "{model.name}" already gives each step a probability; leave use_activation out'
            )

    return Asked(
        _items(asked, finished=False),
        lambda answered: write_pooling(answered, is_activated=is_activated),
        model=asked.model,
        raw=True if is_activated else None,
        check=check,
        along=lambda model: "steps" if model.steps else "tokens",
    )


def _items(asked: _Input, *, finished: bool) -> list[Item]:
    if (asked.input is None) == (asked.messages is None):
        raise InvalidRequest("body: give either input or messages")
    if asked.messages:
        return [ChatItem(messages=asked.messages, finished=finished)]
    return items_of("input", asked.input)


def _refuse_probability(model: Chosen) -> None:
    if model.good is not None:
        raise InvalidRequest(
            f'model "{model.name}" gives the probability of a step, which is not the logit of a class; use '
            "/pooling or /score"
        )


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


def write_pooling(answered: Answered, *, is_activated: bool) -> dict[str, Any]:
    """For each text rows of labels: of a probability p of two labels 1 - p and p, in the order of the model's."""
    tokens, good = sum(answered.num_tokens), answered.model.good
    return {
        "id": f"pool-{answered.id}",
        "object": "list",
        "created": answered.created_s,
        "model": answered.model.name,
        "data": [
            {"index": index, "object": "pooling", "data": [_row(value, good, is_activated) for value in values]}
            for index, values in enumerate(answered.along)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }


def _row(value: float, good: Sequence[bool] | None, is_activated: bool) -> list[float]:
    if good is None:
        return [sigmoid(value) if is_activated else value]
    return [value if speaks_for else 1 - value for speaks_for in good]


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


class _Pooled(BaseModel):
    index: int
    object: Literal["pooling"]
    data: list[list[float]]


class PoolingAnswer(BaseModel):
    """An answer of `/pooling`."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[_Pooled]
    usage: dict[str, int]


CLASSIFY = DialectRoute("/classify", "vllm", read, Body, Answer)
POOLING = DialectRoute("/pooling", "vllm_pooling", read_pooling, PoolingBody, PoolingAnswer)
ROUTES = (CLASSIFY, POOLING)
