"""The JSON of `POST /score`: how a body is read, and the shapes that the OpenAPI document shows."""

from typing import Any

from pydantic import BaseModel, ValidationError

from plaudit_service.items import ScoreRequest, as_request_error
from plaudit_service.results import Result, Status

_MAX_DETAIL_CHARS = 500


class ScoresAlong(BaseModel):
    """What the model gives at tokens of one text, in columns of one length, as the OpenAPI document shows it."""

    tokens: list[int]
    scores: list[float]
    trained: bool
    ends: list[int] | None = None
    messages: list[int | None] | None = None
    steps: list[int] | None = None


class ScoreResult(BaseModel):
    """One result, as the OpenAPI document shows it. `index` counts the request's sequences from 0, in order."""

    index: int
    status: Status
    score: float | None
    num_tokens: int
    truncated: bool
    detail: str | None = None
    heads: dict[str, float] | None = None
    along: ScoresAlong | None = None
    text: str | None = None


class ScoreAnswer(BaseModel):
    """The answer of `POST /score`: one result per sequence, in order."""

    model: str
    fingerprint: str
    engine: str
    results: list[ScoreResult]


class Problem(BaseModel):
    """RFC 9457 problem document (`application/problem+json`)."""

    type: str
    title: str
    status: int
    detail: str


def parse_request(body: bytes | str) -> ScoreRequest:
    """Check a JSON body.

    Raises:
        NotJson: it is no JSON document.
        InvalidRequest: it is JSON of a wrong shape; the message says where.
    """
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        raise as_request_error(error) from error


def to_wire(result: Result) -> dict[str, Any]:
    """The JSON object of a result: what comes behind `truncated` only where there is any."""
    wire: dict[str, Any] = {
        "index": result.index,
        "status": str(result.status),
        "score": result.score,
        "num_tokens": result.num_tokens,
        "truncated": result.truncated,
    }
    if result.detail is not None:
        wire["detail"] = result.detail[:_MAX_DETAIL_CHARS]
    if result.heads is not None:
        wire["heads"] = dict(result.heads)
    if result.along is not None:
        wire["along"] = {name: value for name, value in vars(result.along).items() if value is not None}
    if result.text is not None:
        wire["text"] = result.text
    return wire
