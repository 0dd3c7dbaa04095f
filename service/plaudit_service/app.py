"""The HTTP routes and the OpenAPI document. Alone in knowing FastAPI."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from plaudit_service.access import Access
from plaudit_service.asgi import INTERNAL_ERROR, PROBLEM_MEDIA_TYPE, App, Receive, Scope, Send, problem_document
from plaudit_service.dialects.endpoint import dialect_endpoints
from plaudit_service.score_endpoint import ScoreEndpoint
from plaudit_service.service import Service
from plaudit_service.wire import Problem, ScoreAnswer, ScoreRequest

_DOCS_ASSETS = "/docs-assets"

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {PROBLEM_MEDIA_TYPE: {}}, "description": description}
    for status, description in {
        400: "The body is not JSON",
        401: "No or wrong API key",
        404: "No such model",
        408: "The body did not arrive in time",
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
    endpoints: dict[str, App] = {"/score": ScoreEndpoint(service), **dialect_endpoints(service)}

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        # What is asked most goes past FastAPI's machinery (docs/decisions.md).
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        await (endpoints.get(scope["path"], app) if is_post else app)(scope, receive, send)

    routes = endpoints.keys() | {route.path for route in app.routes if hasattr(route, "path")}
    open_routes = {"/metrics", "/docs", f"{_DOCS_ASSETS}/", "/openapi.json"} if service.settings.open_metrics else ()
    return Access(dispatch, metrics=service.metrics, api_keys=api_keys, routes=routes, open_routes=open_routes)


def build_routes(service: Service) -> FastAPI:
    """The routes as FastAPI knows and documents them; `build_app` answers POST /score before they are asked."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPIOffline(
        title="plaudit",
        version=version("plaudit"),
        summary="Scores language-model completions with a trained reward model.",
        lifespan=lifespan,
        docs_url="/docs",
        redoc_url=None,
        static_url=_DOCS_ASSETS,
    )
    _add_probes(app, service)
    _document_score(app)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_bug)
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


async def _answer_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    document = problem_document(error.status_code, error.detail, error.detail)
    return JSONResponse(document, error.status_code, dict(error.headers or {}), media_type=PROBLEM_MEDIA_TYPE)


async def _answer_bug(_: Request, __: Exception) -> Response:
    return JSONResponse(INTERNAL_ERROR, 500, media_type=PROBLEM_MEDIA_TYPE)


def _document_score(app: FastAPI) -> None:
    """Put `/score` into the OpenAPI document; its body is read by hand, so FastAPI cannot know the schema."""

    @app.post(
        "/score",
        summary="Score items: one result per sequence, in order",
        response_model=ScoreAnswer,
        responses=_PROBLEMS,
    )
    async def score() -> None:
        raise AssertionError("build_app answers this route")

    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            schema = ScoreRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            document["components"]["schemas"].update(schema.pop("$defs"), ScoreRequest=schema)
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{}, {"key": []}]
            document["paths"]["/score"]["post"]["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ScoreRequest"}}},
            }
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
