"""The JSON of `POST /score`: how a body is read, and the shapes that the OpenAPI document shows."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from plaudit_service.items import ScoreRequest, as_request_error
from plaudit_service.results import Result, Status

_MAX_DETAIL_CHARS = 500


class _Shown(BaseModel):
    # What stands below a field describes it in the OpenAPI document and in docs/reference/wire.md.
    model_config = ConfigDict(use_attribute_docstrings=True)


class ScoresAlong(_Shown):
    """The scores along one text, at some or all of its tokens. All columns have the same length."""

    tokens: list[int]
    """The index of each token in the whole text, before any truncation, from 0."""
    scores: list[float]
    """The score of the text up to and including each token, weighted and normalized as the score."""
    trained: bool
    """Whether the model was trained to give scores at these tokens."""
    ends: list[int] | None = None
    """The end of each token in the scored text, in code points. Not for `token_ids`."""
    messages: list[int | None] | None = None
    """The number of the message whose content the token ends in; null between two, or where the template does not
    write a content as it is. Only of a chat."""
    steps: list[int] | None = None
    """The index of the step that each token ends. Only if `along` is `steps`."""


class ScoreResult(_Shown):
    """The result of one sequence."""

    index: int
    """Which of the request's sequences this is, from 0, in order."""
    status: Status
    """`ok`, or why there is no score."""
    score: float | None
    """The score; null unless the status is `ok`."""
    num_tokens: int
    """Tokens of the whole text, before any truncation."""
    truncated: bool
    """Whether some of its tokens were left out."""
    detail: str | None = None
    """Why there is no score, in one line."""
    heads: dict[str, float] | None = None
    """The value of each head by its name, never normalized; where the model has several. Of a combination the scores of
    its parts."""
    along: ScoresAlong | None = None
    """The scores along the text, if the request asked for `along`."""
    text: str | None = None
    """The text that was scored, if the request set `explain`."""


class ScoreAnswer(_Shown):
    """The answer of `POST /score`: one result for each sequence, in order."""

    model: str
    """The model that computed the scores."""
    fingerprint: str
    """The identity of everything that can change a score: `sha256:...`."""
    engine: str
    """What computed the scores: runtime and device, such as `onnxruntime-cpu`."""
    results: list[ScoreResult]
    """One for each sequence, in the order of the request."""


class Problem(_Shown):
    """RFC 9457 problem document (`application/problem+json`): the answer to a request that is refused as a whole."""

    type: str
    """The stable name of the problem: `urn:plaudit:...`, or `about:blank`."""
    title: str
    """What the type means."""
    status: int
    """The HTTP status."""
    detail: str
    """What is wrong with this request: where, the value, the limit, what to do."""


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
