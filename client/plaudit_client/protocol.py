"""The wire protocol without I/O: builds the requests of a call and checks their answers.

Knows nothing of connections, retries or time.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from plaudit_client import errors
from plaudit_client.errors import FingerprintChanged, InvalidAnswer, RequestRejected, ServiceUnavailable
from plaudit_client.items import num_chars, num_sequences
from plaudit_client.retry import RETRYABLE_STATUSES, parse_retry_after
from plaudit_client.scores import Along, Score, Scores, Status

Truncation = Literal["error", "left", "right"]
AlongWhat = Literal["none", "steps", "tokens"]

_ANSWER_BASE_BYTES = 64 * 1024
_ANSWER_BYTES_PER_SEQUENCE = 4 * 1024
# Of what may be asked for besides: a token's entries in all columns, a character as JSON writes it, the tokens of a
# character, and what a chat template may write beside the messages.
_ANSWER_BYTES_PER_TOKEN = 64
_ANSWER_BYTES_PER_CHAR = 12
_TOKENS_PER_CHAR = 4
_TEMPLATE_CHARS = 64 * 1024
_STATUSES = frozenset(get_args(Status))
_REJECTIONS: dict[int, type[RequestRejected]] = {
    401: errors.Unauthorized,
    404: errors.UnknownModel,
    409: errors.FingerprintMismatch,
    413: errors.RequestTooLarge,
    422: errors.InvalidRequest,
}


@dataclass(frozen=True)
class Options:
    """What a score request says beside its items, and so what its answer must match; None and defaults are not sent."""

    model: str | None = None
    truncation: Truncation = "error"
    raw: bool = False
    fingerprint: str | None = None
    engine: str | None = None
    along: AlongWhat = "none"
    explain: bool = False

    def to_wire(self) -> dict[str, Any]:
        """The fields of the request body."""
        fields = {"model": self.model, "fingerprint": self.fingerprint, "engine": self.engine}
        wire: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
        if self.along != "none":
            wire["along"] = self.along
        if self.explain:
            wire["explain"] = True
        return wire | {"truncation": self.truncation, "raw": self.raw}

    def max_extra_bytes(self, num_chars: int, num_sequences: int, max_along_tokens: int | None) -> int:
        """More than what is asked for besides the scores takes of any honest answer."""
        chars = num_chars + _TEMPLATE_CHARS * num_sequences
        extra = _ANSWER_BYTES_PER_CHAR * chars if self.explain else 0
        if self.along != "none":
            tokens = _TOKENS_PER_CHAR * chars
            extra += _ANSWER_BYTES_PER_TOKEN * (tokens if max_along_tokens is None else min(tokens, max_along_tokens))
        return extra


@dataclass(frozen=True)
class Limits:
    """How much one request may hold; the defaults are for a service that does not tell."""

    max_sequences: int = 256
    max_body_bytes: int = 8 * 1024 * 1024
    max_chars: int | None = None  # of all sequences, a group's prompt counted for each completion; None: any number
    max_along_tokens: int | None = None  # at which values along the texts may be asked for; None: any number


@dataclass(frozen=True)
class ScoreRequest:
    """One request of a call: the items from `first_item` on, as one JSON body."""

    first_item: int
    num_items: int
    num_sequences: int
    body: bytes
    max_extra_bytes: int = 0  # of the answer, for what is asked for besides scores

    @property
    def max_answer_bytes(self) -> int:
        """More than any honest answer has."""
        return _ANSWER_BASE_BYTES + _ANSWER_BYTES_PER_SEQUENCE * self.num_sequences + self.max_extra_bytes


@dataclass(frozen=True)
class Reply:
    """What came back for one attempt, before any check.

    Attributes:
        where: Method, URL and request id, for messages.
        status: The HTTP status.
        headers: Looked up in lower case.
        body: All of it, or where it was longer than allowed, one byte more than allowed.
        max_body_bytes: What was allowed.
    """

    where: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    max_body_bytes: int


def split_items(items: Sequence[Mapping[str, Any]], options: Options, limits: Limits) -> Iterator[ScoreRequest]:
    """Split normalized items into requests that keep to the limits.

    An item is never split, so that a group's shared prompt is computed once; one that is over the limits by itself
    goes alone, and the service says what it thinks of it.

    Args:
        items: In the caller's order, which the requests keep.
        options: The same for every request.
        limits: Of one request.

    Yields:
        The requests.
    """
    tail = b"]," + json.dumps(options.to_wire()).encode()[1:]
    head = b'{"items":['
    max_chars = limits.max_chars
    if options.along == "tokens" and limits.max_along_tokens is not None:  # hardly ever more than characters
        max_chars = min(max_chars or limits.max_along_tokens, limits.max_along_tokens)

    def request() -> ScoreRequest:
        extra = options.max_extra_bytes(chars, sequences, limits.max_along_tokens)
        return ScoreRequest(first, len(parts), sequences, head + b",".join(parts) + tail, extra)

    parts: list[bytes] = []
    size = len(head) + len(tail)
    sequences = chars = first = 0
    for index, item in enumerate(items):
        part = json.dumps(item, separators=(",", ":"), allow_nan=False).encode()
        count = num_sequences(item)
        item_chars = num_chars(item)
        over = (
            sequences + count > limits.max_sequences
            or size + len(part) + 1 > limits.max_body_bytes
            or (max_chars is not None and chars + item_chars > max_chars)
        )
        if parts and over:
            yield request()
            parts, sequences, chars, first = [], 0, 0, index
            size = len(head) + len(tail)
        parts.append(part)
        sequences += count
        chars += item_chars
        size += len(part) + 1
    if parts:
        yield request()


def check_status(reply: Reply) -> None:
    """Let only a 200 pass.

    Raises:
        ServiceUnavailable: A status that is worth another attempt.
        RequestRejected: Any other, as the subclass of that status.
    """
    if reply.status == 200:
        return
    problem_type, detail = _parse_problem(reply.body)
    message = f"{reply.where}: status {reply.status}" + (f": {detail}" if detail else "")
    if reply.status in RETRYABLE_STATUSES:
        retry_after_s = parse_retry_after(reply.headers.get("retry-after"))
        raise ServiceUnavailable(message, status=reply.status, retry_after_s=retry_after_s)
    kind = _REJECTIONS.get(reply.status, RequestRejected)
    if detail is None:
        message += "; check that the URL is that of a scoring service"
    raise kind(message, status=reply.status, problem_type=problem_type, detail=detail)


def parse_answer(reply: Reply, expected_sequences: int, options: Options) -> Scores:
    """Check the answer of a score request down to each number.

    Args:
        reply: With status 200.
        expected_sequences: How many results there must be.
        options: Those of the request; its model, fingerprint and engine must be the answer's.

    Raises:
        InvalidAnswer: Anything about it is wrong.
        FingerprintChanged: Another reward model or engine computed it.
    """
    answer = parse_object(reply)
    model, fingerprint, engine = (_get_str(answer, key, reply) for key in ("model", "fingerprint", "engine"))
    if options.model not in {None, model}:
        _refuse(reply, f"model is {model!r}, asked for {options.model!r}")
    for key, actual, wanted in (
        ("fingerprint", fingerprint, options.fingerprint),
        ("engine", engine, options.engine),
    ):
        if wanted not in {None, actual}:
            raise changed(reply.where, key, actual, wanted)
    results = answer.get("results")
    if not isinstance(results, list):
        _refuse(reply, "results is not a list")
    if len(results) != expected_sequences:
        _refuse(reply, f"{len(results)} results for {expected_sequences} sequences")
    scores = tuple(_parse_result(result, index, reply, options) for index, result in enumerate(results))
    return Scores(scores, model, fingerprint, engine)


def merge(parts: Sequence[Scores]) -> Scores:
    """Join the answers of a call's requests, in their order.

    Raises:
        FingerprintChanged: Not all were computed by the same reward model and engine.
    """
    first = parts[0]
    for part in parts:
        check_same(part, first)
    results = tuple(result for part in parts for result in part.results)
    return Scores(results, first.model, first.fingerprint, first.engine)


def check_same(scores: Scores, pinned: Scores) -> None:
    """Refuse scores of another reward model or engine than the pinned ones.

    Raises:
        FingerprintChanged: They are.
    """
    for key in ("fingerprint", "engine"):
        actual, wanted = getattr(scores, key), getattr(pinned, key)
        if actual != wanted:
            raise changed("score", key, actual, wanted)


def changed(where: str, key: str, actual: object, wanted: object) -> FingerprintChanged:
    """The error for an answer that something else computed than what is pinned."""
    return FingerprintChanged(
        f"{where}: {key} is {actual}, pinned is {wanted}; scores of both cannot be compared: serve one reward "
        "model on one kind of engine behind all URLs, or create a new client"
    )


def parse_limits(reply: Reply) -> Limits:
    """The limits of the service from its /info.

    Raises:
        InvalidAnswer: They are not there.
    """
    limits = parse_object(reply).get("limits")
    if not isinstance(limits, dict):
        limits = {}
    return Limits(
        _get_limit(limits, "max_sequences_per_request", reply),
        _get_limit(limits, "max_body_bytes", reply),
        _get_limit(limits, "max_request_chars", reply) if "max_request_chars" in limits else None,
        _get_limit(limits, "max_along_tokens", reply) if "max_along_tokens" in limits else None,
    )


def _get_limit(limits: dict[str, Any], key: str, reply: Reply) -> int:
    value = limits.get(key)
    if type(value) is not int or value < 1:
        _refuse(reply, f"limits.{key} is not a positive integer")
    return value


def parse_object(reply: Reply) -> dict[str, Any]:
    """The JSON object of an answer.

    Raises:
        InvalidAnswer: It is too long, compressed although not asked for, or no JSON object.
    """
    if len(reply.body) > reply.max_body_bytes:
        _refuse(reply, f"longer than {reply.max_body_bytes} bytes")
    if "content-encoding" in reply.headers:
        _refuse(reply, f"content-encoding {reply.headers['content-encoding']!r} was not asked for")
    try:
        # Python reads NaN and Infinity, which JSON does not have.
        answer = json.loads(reply.body, parse_constant=lambda name: _refuse(reply, f"contains {name}"))
    except (ValueError, RecursionError) as error:
        kind = reply.headers.get("content-type", "no content-type")
        raise InvalidAnswer(
            f"{reply.where}: the answer is not JSON ({kind}); check that the URL is that of a scoring service"
        ) from error
    if not isinstance(answer, dict):
        _refuse(reply, "not a JSON object")
    return answer


def _parse_result(result: object, index: int, reply: Reply, options: Options) -> Score:
    at = f"results[{index}]"
    if not isinstance(result, dict):
        _refuse(reply, f"{at} is not an object")
    told = result.get("index", index)  # older services tell none
    if type(told) is not int or told != index:
        _refuse(reply, f"{at}.index is not {index}: the results are not in the order of the request")
    status = result.get("status")
    if not (isinstance(status, str) and status in _STATUSES):
        _refuse(reply, f"{at}.status is unknown")
    score, heads, num_tokens = result.get("score"), result.get("heads"), result.get("num_tokens")
    truncated, detail = result.get("truncated", False), result.get("detail")
    if status == "ok":
        score = _get_finite(score, f"{at}.score", reply)
    elif score is not None or heads is not None:
        _refuse(reply, f"{at} has a score although its status is {status}")
    if heads is not None:
        if not isinstance(heads, dict):
            _refuse(reply, f"{at}.heads is not an object")
        heads = {name: _get_finite(value, f"{at}.heads.{name}", reply) for name, value in heads.items()}
    if not (num_tokens is None or (type(num_tokens) is int and num_tokens >= 0)):
        _refuse(reply, f"{at}.num_tokens is not a whole number of at least 0")
    if not isinstance(truncated, bool):
        _refuse(reply, f"{at}.truncated is neither true nor false")
    if not (detail is None or isinstance(detail, str)):
        _refuse(reply, f"{at}.detail is not a string")
    along, text = result.get("along"), result.get("text")
    if (along is not None) != (status == "ok" and options.along != "none"):
        _refuse(reply, f"{at}.along is {'missing' if along is None else 'not what was asked for'}")
    if along is not None:
        along = _parse_along(along, f"{at}.along", reply, options)
    if not (text is None or (isinstance(text, str) and options.explain)):
        _refuse(reply, f"{at}.text is not a string, or was not asked for")
    return Score(status, score, num_tokens, truncated, detail, heads, along, text)  # type: ignore[arg-type]  # status was checked


def _parse_along(along: object, at: str, reply: Reply, options: Options) -> Along:
    if not isinstance(along, dict):
        _refuse(reply, f"{at} is not an object")
    scores = along.get("scores")
    if not isinstance(scores, list):
        _refuse(reply, f"{at}.scores is not a list")
    columns: dict[str, tuple[Any, ...] | None] = {}
    for name in ("tokens", "ends", "messages", "steps"):
        column = along.get(name)
        if column is None and name != "tokens" and not (name == "steps" and options.along == "steps"):
            columns[name] = None
            continue
        if not isinstance(column, list) or len(column) != len(scores):
            _refuse(reply, f"{at}.{name} is not a list as long as {at}.scores")
        if not all((type(entry) is int and entry >= 0) or (entry is None and name == "messages") for entry in column):
            _refuse(reply, f"{at}.{name} has an entry that is not a whole number of at least 0")
        columns[name] = tuple(column)
    if not isinstance(along.get("trained"), bool):
        _refuse(reply, f"{at}.trained is neither true nor false")
    values = tuple(_get_finite(value, f"{at}.scores", reply) for value in scores)
    return Along(scores=values, trained=along["trained"], **columns)  # type: ignore[arg-type]  # tokens are there


def _get_finite(value: object, at: str, reply: Reply) -> float:
    # bool is an int for Python; 1e999 is Infinity, and an int of 400 digits is no float at all.
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(reply, f"{at} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        _refuse(reply, f"{at} is not finite")
    return number


def _get_str(answer: dict[str, Any], key: str, reply: Reply) -> str:
    value = answer.get(key)
    if not isinstance(value, str) or not value:
        _refuse(reply, f"{key} is missing or not a string")
    return value


def _parse_problem(body: bytes) -> tuple[str | None, str | None]:
    """Type and detail of a problem document (RFC 9457); None for what it does not have."""
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(problem, dict):
        return None, None
    found = (problem.get("type"), problem.get("detail"))
    problem_type, detail = (" ".join(value.split())[:1000] if isinstance(value, str) else None for value in found)
    return problem_type, detail


def _refuse(reply: Reply, what: str) -> NoReturn:
    raise InvalidAnswer(f"{reply.where}: unusable answer: {what}")
