"""Fakes for the tests of code that scores: no network, no model, the same checks of every answer.

Examples::

    service = FakeService(lambda item: float(len(item["text"])))
    with RewardClient("http://fake", transport=service) as client:
        client.score(["abc"]).floats  # [3.0]

    scorer = FakeScorer(lambda item: "too_long")  # may stand wherever `client.score` does

    transport = FakeTransport(lambda request: json_response({"detail": "busy"}, 429))  # failures, as you need them
"""

import json
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from plaudit_client import protocol
from plaudit_client.items import ItemLike, normalize_items
from plaudit_client.protocol import AlongWhat, Options, Reply, Truncation
from plaudit_client.scores import Scores, Status
from plaudit_client.transport import HttpRequest, HttpResponse

ScoreFunction = Callable[[dict[str, Any]], float | Status]
"""Gives the score or the failure of one sequence: an item in wire form, a group's completions one at a time."""


class FakeScorer:
    """A callable with the signature of `RewardClient.score` that scores with a function.

    Args:
        function: Called once per sequence; a float that is not finite becomes the status `non_finite`.
        model: Name of the model in the answers.
        fingerprint: Fingerprint in the answers.
        engine: Engine in the answers.

    Attributes:
        calls: The items of each call, in wire form.
    """

    def __init__(
        self,
        function: ScoreFunction,
        *,
        model: str = "fake",
        fingerprint: str = "sha256:fake",
        engine: str = "fake",
    ) -> None:
        self.calls: list[list[dict[str, Any]]] = []
        self._function = function
        self._identity = {"model": model, "fingerprint": fingerprint, "engine": engine}

    def __call__(
        self,
        items: Sequence[ItemLike],
        *,
        model: str | None = None,
        truncation: Truncation = "error",
        raw: bool = False,
        fingerprint: str | None = None,
        engine: str | None = None,
        along: AlongWhat = "none",
        explain: bool = False,
        timeout_s: float | None = None,
    ) -> Scores:
        """Score items as `RewardClient.score` does; only `model`, `fingerprint` and `engine` change anything."""
        wire_items = normalize_items(items)
        self.calls.append(wire_items)
        results = _score_all(self._function, wire_items)
        body = json.dumps(self._identity | {"results": results}).encode()
        reply = Reply("FakeScorer", 200, {}, body, len(body))
        return protocol.parse_answer(reply, len(results), Options(model, truncation, raw, fingerprint, engine))


class FakeTransport:
    """A transport for both clients that answers with a function.

    Args:
        answer: Called with each request; returns the answer (or an awaitable of it; see `json_response`), or raises
            `ConnectionFailed`.
    """

    def __init__(self, answer: Callable[[HttpRequest], HttpResponse | Awaitable[HttpResponse]]) -> None:
        self.answer = answer

    async def resolve(self, url: str) -> Sequence[str]:
        """One replica for each URL."""
        return (url,)

    async def send(self, request: HttpRequest, address: str) -> HttpResponse:
        """What the function answers."""
        answer = self.answer(request)
        return answer if isinstance(answer, HttpResponse) else await answer

    async def disconnect(self, url: str, address: str) -> None:
        """There is no connection."""

    async def close(self) -> None:
        """There is nothing to close."""


class FakeService(FakeTransport):
    """A transport for both clients that answers /score, /info, /readyz and /healthz in memory.

    Args:
        function: Called once per sequence; a float that is not finite becomes the status `non_finite`.
        model: Name of the model in the answers.
        fingerprint: Fingerprint in the answers; a request that pins another one gets 409.
        engine: Engine in the answers; a request that pins another one gets 409.
        max_sequences_per_request: The limit in /info; a larger request gets 413.

    Attributes:
        requests: All requests so far, in order.
    """

    def __init__(
        self,
        function: ScoreFunction,
        *,
        model: str = "fake",
        fingerprint: str = "sha256:fake",
        engine: str = "fake",
        max_sequences_per_request: int = 256,
    ) -> None:
        super().__init__(self._answer)
        self.requests: list[HttpRequest] = []
        self._function = function
        self._identity = {"model": model, "fingerprint": fingerprint, "engine": engine}
        self._limits = {"max_sequences_per_request": max_sequences_per_request, "max_body_bytes": 8 * 1024 * 1024}

    def _answer(self, request: HttpRequest) -> HttpResponse:
        self.requests.append(request)
        match request.method, request.path:
            case "GET", "/readyz" | "/healthz":
                return json_response({"status": "ok"})
            case "GET", "/info":
                return json_response({"limits": self._limits, "models": [self._identity]})
            case "POST", "/score":
                return self._answer_score(json.loads(request.body or b""))
            case _:
                return _problem(404, f"no route {request.method} {request.path}")

    def _answer_score(self, body: dict[str, Any]) -> HttpResponse:
        for key, status in (("model", 404), ("fingerprint", 409), ("engine", 409)):
            if body.get(key) not in {None, self._identity[key]}:
                return _problem(status, f"{key}: asked for {body[key]}, loaded is {self._identity[key]}")
        results = _score_all(self._function, body["items"])
        if len(results) > self._limits["max_sequences_per_request"]:
            limit = self._limits["max_sequences_per_request"]
            return _problem(413, f"items: {len(results)} sequences, limit {limit}; send fewer")
        return json_response(self._identity | {"results": results})


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """An answer with a JSON body."""
    kind = "application/json" if status == 200 else "application/problem+json"
    return HttpResponse(status, {"content-type": kind} | dict(headers or {}), json.dumps(value).encode())


def _score_all(function: ScoreFunction, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    sequences = [sequence for item in items for sequence in _sequences(item)]
    return [{"index": index} | _to_result(function(each), each) for index, each in enumerate(sequences)]


def _sequences(item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The items with one sequence each that a group stands for."""
    if "completions" not in item:
        yield dict(item)
        return
    shared = {key: value for key, value in item.items() if key != "completions"}
    for completion in item["completions"]:
        if "messages" in item:
            message = {"role": "assistant", "content": completion}
            yield shared | {"messages": [*item["messages"], message]}
        else:
            yield shared | {"completion": completion}


def _to_result(outcome: float | Status, sequence: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(outcome, str) and not math.isfinite(outcome):
        outcome = "non_finite"
    failed = isinstance(outcome, str)
    return {
        "status": outcome if failed else "ok",
        "score": None if failed else outcome,
        "num_tokens": _count_words(sequence),
        "truncated": False,
    }


def _count_words(sequence: Mapping[str, Any]) -> int:
    """A number of tokens as a fake tokenizer would have it: one per word."""
    if "token_ids" in sequence:
        return len(sequence["token_ids"])
    contents = [message.get("content", "") for message in sequence.get("messages", [])]
    texts = [content if isinstance(content, str) else content[0]["text"] for content in contents]
    texts += [sequence.get(key, "") for key in ("text", "prompt", "completion")]
    return sum(len(text.split()) for text in texts)


def _problem(status: int, detail: str) -> HttpResponse:
    return json_response({"type": "about:blank", "title": "refused", "status": status, "detail": detail}, status)
