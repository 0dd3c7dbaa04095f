"""The HTTP routes: read and check a request, ask the service, write the answer. Alone in knowing FastAPI."""

import asyncio
import json
import math
import time
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
    @app.get("/healthz", summary="The process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

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
    tokenizing = _Room(settings.max_tokenizing_bytes)

    @app.post(
        "/score",
        summary="Score items: one result per sequence, in order",
        response_model=ScoreAnswer,
        responses=_PROBLEMS,
    )
    async def score(http: Request) -> Response:
        service.require_ready()
        deadline = _deadline(http)
        body = await _read_body(http, settings.max_body_bytes)
        with tokenizing.taken(len(body)):
            request = await asyncio.to_thread(parse_request, body)
            pipeline = service.pipeline(request.model)
            pipeline.check_pins(request)
            _check_sizes(request, settings.max_sequences_per_request, settings.max_text_chars)
            tokenized = await pipeline.tokenize(request.items, request.truncation)
        scored = await pipeline.compute(tokenized, raw=request.raw, deadline=deadline)
        pipeline.count(scored.results)
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
    """Bytes that may be in one stage at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        if self._used + size > self._limit:
            raise QueueFull(f"{self._used} bytes await tokenization, this body has {size}, limit {self._limit}")
        self._used += size
        try:
            yield
        finally:
            self._used -= size


def _deadline(http: Request) -> float:
    """The time (of `time.monotonic`) after which nobody wants the answer."""
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
    return time.monotonic() + timeout_s


async def _read_body(http: Request, limit: int) -> bytes:
    declared = http.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"the body has {declared} bytes, limit {limit}; split the request")
    chunks: list[bytes] = []
    size = 0
    async for chunk in http.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the body has more than {limit} bytes; split the request")
        chunks.append(chunk)
    return b"".join(chunks)


def _check_sizes(request: ScoreRequest, max_sequences: int, max_chars: int) -> None:
    if request.num_sequences > max_sequences:
        raise TooLarge(f"the request has {request.num_sequences} sequences, limit {max_sequences}; split it")
    for number, item in enumerate(request.items):
        num_chars = _num_chars(item)
        if num_chars > max_chars:
            raise TooLarge(f"items[{number}]: a text of {num_chars} characters, limit {max_chars}; shorten it")


def _num_chars(item: Item) -> int:
    """Characters (or ids) of the item's longest sequence."""
    match item:
        case TextItem():
            return len(item.text)
        case TokenItem():
            return len(item.token_ids)
        case PromptItem():
            head, completions = len(item.prompt), [item.completion or ""] + (item.completions or [])
        case ChatItem():
            head, completions = sum(len(message.content) for message in item.messages), ["", *(item.completions or [])]
    return head + max(map(len, completions))


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
