"""What a dialect is: a pure translation of a trainer's request to items, and of their scores to its answer.

Its formats hold bare numbers, so a dialect writes an answer only where every sequence has a score.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from plaudit_service.http.dialects.special_tokens import SpecialTokens
from plaudit_service.items import Item, as_request_error

_Shape = TypeVar("_Shape", bound="Shape")


class Shape(BaseModel):
    """The body of a request; what a trainer sends besides, and what changes no score, is ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


@dataclass(frozen=True)
class Answered:
    """All scores of a request, in order, and what else an answer may tell."""

    model: str
    scores: Sequence[float]
    num_tokens: Sequence[int]
    id: str
    created_s: int


@dataclass(frozen=True)
class Asked:
    """A trainer's request in the words of `/score`.

    Attributes:
        items: One sequence each.
        write: Makes the answer's JSON document.
        model: Name or source of the model, as the body says; None: the URL says, or there is only one.
        raw: Whether raw scores are asked for; None: as the operator set it.
    """

    items: list[Item]
    write: Callable[[Answered], Any]
    model: str | None = None
    raw: bool | None = None


@dataclass(frozen=True)
class Dialect:
    """One route.

    Attributes:
        path: Its path.
        read: Reads a body and the parameters of the URL, by what counts as special tokens of the policy
            (InvalidRequest, NotJson).
        body: The type of a body, for the OpenAPI document.
        answer: The type of an answer, for the same.
        parameters: What the URL may carry besides `model`, and what it is for.
    """

    path: str
    read: Callable[[bytes, Mapping[str, str], SpecialTokens], Asked]
    body: Any
    answer: Any
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse(shape: type[_Shape], body: bytes) -> _Shape:
    """Check a JSON body.

    Raises:
        NotJson: it is no JSON document.
        InvalidRequest: it has a wrong shape; the message says where.
    """
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise as_request_error(error) from error
