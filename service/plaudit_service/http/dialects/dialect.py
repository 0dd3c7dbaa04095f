"""What a dialect is: routes, each a pure translation of a request to items, and of their scores to an answer.

Most formats hold bare numbers, so an answer is written only where every sequence has a score.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, ValidationError

from plaudit_service.errors import InvalidRequest, NotJson
from plaudit_service.http.asgi import ErrorWriter
from plaudit_service.http.dialects.special_tokens import SpecialTokens
from plaudit_service.items import Along, Item, Truncation, as_request_error

_Shape = TypeVar("_Shape", bound="Shape")


class Shape(BaseModel):
    """The body of a request; what a trainer sends besides, and what changes no score, is ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


@dataclass(frozen=True)
class Chosen:
    """What a dialect may know of the model that a request names.

    Attributes:
        name: Its name.
        labels: The names of its outputs; of a combination, which has one, its own name.
        pair: Whether it scores pairs of texts.
        steps: Whether it scores steps.
        good: Of a model whose score is a probability, which of its outputs speak for it; None: it is none.
    """

    name: str
    labels: tuple[str, ...] = ("score",)
    pair: bool = False
    steps: bool = False
    good: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Answered:
    """All scores of a request, in order, and what else an answer may tell.

    Attributes:
        heads: The raw outputs of a model that has several, by label; None: it has one.
        terms: What adds up to the score; None: it is no sum.
        along: What the model gives along each text, where that was asked for.
    """

    model: Chosen
    scores: Sequence[float]
    num_tokens: Sequence[int]
    id: str
    created_s: int
    heads: Sequence[Mapping[str, float] | None] = ()
    terms: Sequence[Mapping[str, float] | None] = ()
    along: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class Asked:
    """A trainer's request in the words of `/score`.

    Attributes:
        items: One sequence each, or several that share a prompt.
        write: Makes the answer: JSON that is written already, or a document.
        model: Name or source of the model, as the body says; None: the URL says, or there is only one.
        raw: Whether raw scores are asked for; None: as the operator set it.
        truncation: What the request makes of the operator's choice.
        check: Refuses what the chosen model cannot answer (RequestError).
        along: What is asked for along the texts of the chosen model.
    """

    items: list[Item]
    write: Callable[[Answered], Any]
    model: str | None = None
    raw: bool | None = None
    truncation: Callable[[Truncation], Truncation] = lambda setting: setting
    check: Callable[[Chosen], None] = lambda model: None
    along: Callable[[Chosen], Along] = lambda model: "none"


@dataclass(frozen=True)
class Settled:
    """The answer to a request that needs no score: JSON that is written already, or a document."""

    document: Any


@dataclass(frozen=True)
class DialectRoute:
    """One route.

    Attributes:
        path: Its path.
        operation: Its name in the OpenAPI document.
        read: Reads a body and the parameters of the URL, by what counts as special tokens of the policy
            (InvalidRequest, NotJson).
        body: The type of a body, for the OpenAPI document; None: there is none.
        answer: The type of an answer, for the same.
        parameters: What the URL may carry, and what it is for.
        example: A body, for the OpenAPI document.
        scores: Whether it scores anything.
        errors: How errors are written; None: as problem documents.
        method: Its HTTP method.
    """

    path: str
    operation: str
    read: Callable[[bytes, Mapping[str, str], SpecialTokens], Asked | Settled]
    body: Any
    answer: Any
    parameters: Mapping[str, str] = field(default_factory=dict)
    example: Any = None
    scores: bool = True
    errors: "ErrorShape | None" = None
    method: Literal["GET", "POST"] = "POST"


@dataclass(frozen=True)
class ErrorShape:
    """How a dialect's clients read errors.

    Attributes:
        write: The status and the JSON document of an error.
        document: The type of that document, for the OpenAPI document.
        statuses: What each status means, for the same; besides those that are answered before a route is looked up.
        sheds: Whether they know 429; otherwise it is 503.
    """

    write: ErrorWriter
    document: Any
    statuses: Mapping[int, str]
    sheds: bool = False


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


def check_shape(shape: type[_Shape], document: Mapping[str, Any]) -> _Shape:
    """Check a JSON object that was parsed.

    Raises:
        InvalidRequest: it has a wrong shape; the message says where.
    """
    try:
        return shape.model_validate(document)
    except ValidationError as error:
        raise as_request_error(error) from error


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is, whatever it holds.

    Raises:
        NotJson: it is no JSON document.
        InvalidRequest: it is another one than an object.
    """
    try:
        document = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise NotJson(f"{error}; send a JSON object") from error
    if not isinstance(document, dict):
        raise InvalidRequest("body: not a JSON object; send one")
    return document
