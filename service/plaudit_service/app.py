"""The HTTP routes: read and check a request, ask the service, write the answer. Alone in knowing FastAPI."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from plaudit_service.access import PROBLEM_MEDIA_TYPE, Access, problem
from plaudit_service.errors import AllExpired, InvalidRequest, QueueFull, RequestError, TooLarge
from plaudit_service.service import Service
from plaudit_service.settings import Settings
from plaudit_service.wire import (
    ChatItem,
    Item,
    Problem,
    PromptItem,
    ScoreAnswer,
    ScoreRequest,
    Status,
    TextItem,
    TokenItem,
    parse_request,
)

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {PROBLEM_MEDIA_TYPE: {}}, "description": description}
    for status, description in {
        400: "The body is not JSON",
        401: "No or wrong API key",
        404: "No such model",
        409: "Another fingerprint or engine is loaded",
        413: "The body, the number of sequences or a text is over the limit",
        422: "The request has a wrong shape",
        429: "The queue is full; see Retry-After",
        503: "Not ready or draining; see Retry-After",
        504: "Every sequence expired",
    }.items()
}


def build_app(service: Service, api_keys: Sequence[str] = ()) -> Access:
    """The ASGI application of a service.

    Args:
        service: The loaded models; started and stopped with the application.
        api_keys: Keys of which a request must carry one; none: no key is asked for.
    """
    app = build_routes(service)
    routes = {route.path for route in app.routes if hasattr(route, "path")}
    open_routes = {"/metrics", "/openapi.json"} if service.settings.open_metrics else ()
    return Access(app, metrics=service.metrics, api_keys=api_keys, routes=routes, open_routes=open_routes)


def build_routes(service: Service) -> FastAPI:
    """The routes, without keys and logs around them."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="plaudit",
        version=version("plaudit"),
        summary="Scores language-model completions with a trained reward model.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    _add_probes(app, service)
    _add_score(app, service)

    @app.exception_handler(RequestError)
    async def answer_request_error(http: Request, error: RequestError) -> Response:
        service.metrics.rejected.labels(error.slug).inc()
        http.state.log["outcome"] = error.slug
        headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else None
        return _problem_response(problem(error), headers)

    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_bug)
    _describe_score_request(app)
    return app


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="The process lives, and its engine does not hang", responses={503: {}})
    async def healthz() -> Response:
        if service.alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "failed", "detail": service.not_ready}, 503)

    @app.get("/readyz", summary="Every bundle is verified and the service is not draining", responses={503: {}})
    async def readyz() -> Response:
        if service.not_ready is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "detail": service.not_ready}, 503, {"Retry-After": "1"})

    @app.get("/info", summary="Models, fingerprints, parity measured at start, limits")
    async def info() -> dict[str, Any]:
        return service.info()

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_score(app: FastAPI, service: Service) -> None:
    settings = service.settings
    pending = _Room(settings.max_pending_bytes)

    @app.post(
        "/score",
        summary="Score items: one result per sequence, in order",
        response_model=ScoreAnswer,
        responses=_PROBLEMS,
    )
    async def score(http: Request) -> Response:
        service.require_ready()
        deadline = service.clock() + _timeout_s(http)
        with pending.share() as share:
            body = await _read_body(http, settings.max_body_bytes, share)
            request = await asyncio.to_thread(parse_request, body)
            pipeline = service.pipeline(request.model)
            pipeline.model.check_pins(request)
            share.grow(_check_sizes(request, settings))
            tokenized = await pipeline.tokenize(request.items, request.truncation)
        scored = await pipeline.compute(tokenized, raw=request.raw, deadline=deadline)
        pipeline.count(scored.results, raw=request.raw)
        http.state.log.update(model=pipeline.model.bundle.name, sequences=len(scored.results))
        if scored.results and all(result.status is Status.EXPIRED for result in scored.results):
            raise AllExpired("the deadline of X-Request-Timeout-S passed before any sequence was computed")
        answer = {
            "model": pipeline.model.bundle.name,
            "fingerprint": pipeline.model.bundle.fingerprint,
            "engine": pipeline.model.engine.name,
            "results": [result.to_wire() for result in scored.results],
        }
        times = {"queue": scored.queue_s, "tokenize": tokenized.seconds, "infer": scored.infer_s}
        timing = ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in times.items())
        content = json.dumps(answer, allow_nan=False, separators=(",", ":"))
        return Response(content, media_type="application/json", headers={"Server-Timing": timing})


class _Room:
    """What all bodies that are being read and tokenized may hold together, in bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @contextmanager
    def share(self) -> Iterator["_Share"]:
        """The part of one request, given back at the end."""
        share = _Share(self)
        try:
            yield share
        finally:
            self.used -= share.size


class _Share:
    """One request's part of a room."""

    def __init__(self, room: _Room) -> None:
        self._room = room
        self.size = 0

    def grow(self, size: int) -> None:
        """Take more.

        Raises:
            TooLarge: the request alone is larger than the room.
            QueueFull: there is no room now.
        """
        room = self._room
        if self.size + size > room.limit:
            raise TooLarge(f"the request needs {self.size + size} bytes to be read, limit {room.limit}; split it")
        if room.used + size > room.limit:
            raise QueueFull(f"{room.used} bytes of requests are being read, limit {room.limit}; try again later")
        room.used += size
        self.size += size


def _timeout_s(http: Request) -> float:
    """After how many seconds nobody wants the answer."""
    header = http.headers.get("X-Request-Timeout-S")
    if header is None:
        return math.inf
    try:
        timeout_s = float(header)
    except ValueError:
        timeout_s = math.nan
    if not math.isfinite(timeout_s):
        raise InvalidRequest("header X-Request-Timeout-S: not a number of seconds")
    if timeout_s <= 0:
        raise AllExpired(f"header X-Request-Timeout-S: {timeout_s}, so the deadline has passed already")
    return timeout_s


async def _read_body(http: Request, limit: int, share: _Share) -> bytes:
    declared = http.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"the body has {declared} bytes, limit {limit}; split the request")
    chunks: list[bytes] = []
    size = 0
    async for chunk in http.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the body has more than {limit} bytes; split the request")
        share.grow(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


def _check_sizes(request: ScoreRequest, settings: Settings) -> int:
    """Characters of all sequences together, where every size is within its limit."""
    if request.num_sequences > settings.max_sequences_per_request:
        limit = settings.max_sequences_per_request
        raise TooLarge(f"the request has {request.num_sequences} sequences, limit {limit}; split it")
    total = 0
    for number, item in enumerate(request.items):
        sizes = _num_chars(item)
        if max(sizes) > settings.max_text_chars:
            limit = settings.max_text_chars
            raise TooLarge(f"items[{number}]: a text of {max(sizes)} characters, limit {limit}; shorten it")
        total += sum(sizes)
    if total > settings.max_request_chars:
        limit = settings.max_request_chars
        raise TooLarge(f"the sequences have {total} characters together, limit {limit}; split the request")
    return total


def _num_chars(item: Item) -> list[int]:
    """Characters (or ids) of each of the item's sequences."""
    match item:
        case TextItem():
            return [len(item.text)]
        case TokenItem():
            return [len(item.token_ids)]
        case PromptItem():
            completions = [item.completion or ""] if item.completions is None else item.completions
            return [len(item.prompt) + len(completion) for completion in completions]
        case ChatItem():
            head = sum(len(message.role) + len(message.content) for message in item.messages)
            return [head + len(completion) for completion in item.completions or [""]]


def _problem_response(document: dict[str, Any], headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(document, document["status"], headers, media_type=PROBLEM_MEDIA_TYPE)


async def _answer_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    document = {"type": "about:blank", "title": error.detail, "status": error.status_code, "detail": error.detail}
    return _problem_response(document, dict(error.headers or {}))


async def _answer_bug(_: Request, __: Exception) -> Response:
    detail = "this is a bug; the log has a line with this request's X-Request-Id"
    return _problem_response({"type": "about:blank", "title": "Internal error", "status": 500, "detail": detail})


def _describe_score_request(app: FastAPI) -> None:
    """The body of `/score` is read by hand, to limit it; put its schema into the OpenAPI document all the same."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            schema = ScoreRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            document["components"]["schemas"].update(schema.pop("$defs"), ScoreRequest=schema)
            document["paths"]["/score"]["post"]["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ScoreRequest"}}},
            }
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
