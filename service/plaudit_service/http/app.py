"""The HTTP routes and the OpenAPI document. Alone in knowing FastAPI."""

import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Route

from plaudit_service.http.access import PROBES, Access
from plaudit_service.http.asgi import INTERNAL_ERROR, PROBLEM_MEDIA_TYPE, App, Receive, Scope, Send, problem_document
from plaudit_service.http.console import page
from plaudit_service.http.dialects.endpoint import dialect_endpoints, dialect_info, dialect_routes
from plaudit_service.http.openapi import complete
from plaudit_service.http.score_endpoint import ScoreEndpoint
from plaudit_service.serving.service import Service

_DOCS_ASSETS = "/docs-assets"
_OPENED = frozenset({"/metrics", "/docs", f"{_DOCS_ASSETS}/", "/openapi.json"})  # by --open-metrics


class Probe(BaseModel):
    """The answer of a probe; `detail` says why it failed."""

    status: str
    detail: str | None = None


class ModelCard(BaseModel):
    """A model or combination that requests can name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["plaudit"] = "plaudit"


class ModelList(BaseModel):
    """The answer of `GET /v1/models`; `created` is when the service began."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def build_app(service: Service, api_keys: Sequence[str] = ()) -> Access:
    """The ASGI application of a service.

    Args:
        service: The loaded models; started and stopped with the application.
        api_keys: Keys of which a request must carry one; none: no key is asked for.
    """
    settings = service.settings
    open_routes = PROBES | (_OPENED if settings.open_metrics else frozenset())
    open_routes |= frozenset(page.PATHS) if settings.console else frozenset()
    app = build_routes(service, keys=bool(api_keys), open_routes=open_routes)
    endpoints: dict[tuple[str, str], App] = {("POST", "/score"): ScoreEndpoint(service)}
    endpoints |= {(each.route.method, each.route.path): each for each in dialect_endpoints(service)}
    app.router.routes += [Route(path, endpoint, methods=[method]) for (method, path), endpoint in endpoints.items()]

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "HEAD":  # GET's answer; the server leaves the body out
            scope = {**scope, "method": "GET"}
        # What is asked most goes past FastAPI's machinery (docs/development/decisions/http.md).
        await endpoints.get((scope.get("method", ""), scope.get("path", "")), app)(scope, receive, send)

    routes = {route.path for route in app.routes if hasattr(route, "path")}
    return Access(
        dispatch,
        metrics=service.metrics,
        api_keys=api_keys,
        routes=routes,
        open_routes=open_routes,
        fair_by_address=settings.fair_by_address,
    )


def build_routes(service: Service, *, keys: bool = False, open_routes: Collection[str] = PROBES) -> FastAPI:
    """The routes that FastAPI answers, and the document of all; `build_app` answers POST /score and the dialects.

    Args:
        service: The loaded models.
        keys: Whether requests must carry an API key; for the document.
        open_routes: Paths that need none all the same; for the document.
    """

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
        docs_url=None,
        redoc_url=None,
        static_url=_DOCS_ASSETS,
        servers=[{"url": "."}],
        # A redirect would be to http://, also behind a proxy that ends TLS, with key and prompts in it.
        redirect_slashes=False,
    )
    _add_probes(app, service)
    _add_docs(app)
    if service.settings.console:
        _add_console(app)
    routes = dialect_routes(service.settings.dialects)
    _document(app, lambda document: complete(document, routes, keys=keys, open_routes=open_routes))
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_bug)
    return app


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get(
        "/health",
        summary="As /healthz, by the name that load balancers ask for",
        response_model=Probe,
        responses={503: {"model": Probe, "description": "The engine hangs"}},
    )
    @app.get(
        "/healthz",
        summary="The process lives, and its engine does not hang",
        response_model=Probe,
        responses={503: {"model": Probe, "description": "The engine hangs"}},
    )
    async def healthz() -> Response:
        if service.alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "failed", "detail": service.not_ready}, 503)

    @app.get(
        "/readyz",
        summary="Every bundle is verified and the service is not draining",
        response_model=Probe,
        responses={503: {"model": Probe, "description": "Not ready or draining"}},
    )
    async def readyz() -> Response:
        if service.not_ready is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "detail": service.not_ready}, 503, {"Retry-After": "1"})

    @app.get("/info", summary="Models, fingerprints, parity measured at start, limits")
    async def info() -> dict[str, Any]:
        return service.info() | dialect_info(service)

    started_s = int(time.time())

    @app.get("/v1/models", summary="Models and combinations, as OpenAI's clients list them")
    async def models() -> ModelList:
        return ModelList(data=[ModelCard(id=name, created=started_s) for name in service.models])

    @app.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_docs(app: FastAPI) -> None:
    """The page of the routes. Its links are relative: a proxy may strip a prefix from the path."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        assets = _DOCS_ASSETS.removeprefix("/")
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url=f"{assets}/swagger-ui-bundle.js",
            swagger_css_url=f"{assets}/swagger-ui.css",
            swagger_favicon_url=f"{assets}/favicon.png",
        )


def _add_console(app: FastAPI) -> None:
    """The console's page, by two paths: a redirect could lose the prefix that a proxy strips."""

    async def console() -> HTMLResponse:
        content, headers = page.console_page()
        return HTMLResponse(content, headers=dict(headers))

    for path in page.PATHS:
        app.get(path, summary="The console: scores in a browser", response_class=HTMLResponse)(console)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    document = problem_document(error.status_code, error.detail, error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        here = [route for route in request.app.routes if getattr(route, "path", None) == request.url.path]
        methods = {method for route in here for method in route.methods}
        # HEAD is answered as GET. Several routes may have one path, of which Starlette names the first one's methods.
        headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
    return JSONResponse(document, error.status_code, headers, media_type=PROBLEM_MEDIA_TYPE)


async def _answer_bug(_: Request, __: Exception) -> Response:
    return JSONResponse(INTERNAL_ERROR, 500, media_type=PROBLEM_MEDIA_TYPE)


def _document(app: FastAPI, complete: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Have FastAPI's OpenAPI document completed when it is first asked for."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = complete(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
