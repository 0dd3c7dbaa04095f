"""What FastAPI cannot know of the routes: bodies that are read by hand, problem documents, headers, keys.

Describes only; what it says is held against a running service by tests/security/test_openapi_fuzz.py.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from plaudit_service.http.asgi import PROBLEM_MEDIA_TYPE
from plaudit_service.http.dialects.dialect import DialectRoute
from plaudit_service.http.wire import Problem, ScoreAnswer
from plaudit_service.items import ScoreRequest

Schema = dict[str, Any]

_PROBLEMS = {
    400: "The body is not JSON",
    401: "No or wrong API key",
    404: "No such model",
    408: "The body did not arrive in time",
    409: "Another fingerprint or engine is loaded",
    413: "The body, the number of sequences or a text is over the limit",
    415: "The body is compressed",
    422: "The request has a wrong shape",
    429: "The queue is full",
    431: "The URL and headers are over the limit",
    503: "Not ready or draining",
    504: "Every sequence expired",
}
_DIALECT_PROBLEMS = {
    **{status: _PROBLEMS[status] for status in (400, 401, 404, 408, 413, 415, 431)},
    422: "The request has a wrong shape, or a sequence has no score",
    503: "Not ready, draining, or too many requests wait",
}

_REQUEST_ID = {"description": "The request's id, as sent or made; it is in the log line.", "schema": {"type": "string"}}
_RETRY_AFTER = {"description": "Seconds", "required": True, "schema": {"type": "integer"}}
_UNCOMPRESSED = {"required": True, "schema": {"type": "string", "const": "identity"}}
_CHALLENGE = {"required": True, "schema": {"type": "string", "const": "Bearer"}}
_SERVER_TIMING = {
    "description": "Milliseconds: queue;dur=, tokenize;dur=, infer;dur=",
    "required": True,
    "schema": {"type": "string"},
}
_REQUEST_HEADERS: tuple[tuple[str, str, Schema], ...] = (
    ("X-Request-Id", "1 to 128 visible ASCII characters; another id is replaced", {"type": "string"}),
    (
        "X-Request-Timeout-S",
        "Seconds after which the client no longer needs the answer",
        {"type": "number", "exclusiveMinimum": 0},
    ),
    ("traceparent", "W3C Trace Context; it is in the log line", {"type": "string"}),
)


def complete(document: Schema, dialects: Sequence[DialectRoute], *, keys: bool, open_routes: Collection[str]) -> Schema:
    """Complete FastAPI's document.

    Args:
        document: As FastAPI generates it; changed in place.
        dialects: The routes of those that are answered.
        keys: Whether requests must carry an API key.
        open_routes: Paths that need none all the same.

    Returns:
        The document.
    """
    schemas = document["components"]["schemas"]
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}] if keys else [{}, {"key": []}]
    schemas["Problem"] = _schema(Problem, schemas)
    for name, model in (("ScoreRequest", ScoreRequest), ("ScoreAnswer", ScoreAnswer)):
        schemas[name] = _schema(model, schemas)
    document["paths"]["/score"] = {"post": _score()}
    for route in dialects:
        document["paths"].setdefault(route.path, {})[route.method.lower()] = _dialect(route, schemas)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            is_open = path in open_routes and method == "get"
            if is_open:
                operation["security"] = []
            problems = {431: _PROBLEMS[431]} if is_open else {status: _PROBLEMS[status] for status in (401, 431)}
            operation["responses"] = {**_problems(problems), **operation["responses"]}
            for response in operation["responses"].values():
                response.setdefault("headers", {})["X-Request-Id"] = _REQUEST_ID
        if "get" in operations:
            operations["head"] = _head(operations["get"])
    return document


def _head(get: Schema) -> Schema:
    """The same answers, without their bodies."""
    responses = {
        status: {key: value for key, value in response.items() if key != "content"}
        for status, response in get["responses"].items()
    }
    return {**get, "operationId": f"head_{get['operationId']}", "responses": responses}


def _score() -> Schema:
    return {
        "summary": "Score items: one result per sequence, in order",
        "operationId": "score",
        "parameters": _headers(),
        "requestBody": _json_body({"$ref": "#/components/schemas/ScoreRequest"}),
        "responses": {
            "200": {
                "description": "A result for each sequence",
                "headers": {"Server-Timing": _SERVER_TIMING},
                **_json_content({"$ref": "#/components/schemas/ScoreAnswer"}),
            },
            **_problems(_PROBLEMS),
        },
    }


def _dialect(route: DialectRoute, schemas: Schema) -> Schema:
    parameters = dict(route.parameters)
    if route.scores:
        parameters = {
            "model": "Name of a loaded model or combination; may be left out if only one is loaded.",
            **parameters,
        }
    problems = _problems(_DIALECT_PROBLEMS)
    if route.errors is not None:
        content = _json_content(_schema(route.errors.document, schemas))
        problems = _problems({401: _PROBLEMS[401], 431: _PROBLEMS[431]}) | _problems(route.errors.statuses, content)
    operation = {
        "summary": f"As {route.operation} asks for it",
        "operationId": route.operation,
        "parameters": _headers()
        + [_parameter("query", name, description, {"type": "string"}) for name, description in parameters.items()],
        "responses": {
            "200": {"description": "The answer", **_json_content(_schema(route.answer, schemas))},
            **problems,
        },
    }
    if route.body is not None:
        operation["requestBody"] = _json_body(_schema(route.body, schemas), route.example)
    return operation


def _problems(statuses: Mapping[int, str], content: Schema | None = None) -> Schema:
    """The errors of an operation, by status; where no other content is given, problem documents."""
    headers = {
        429: {"Retry-After": _RETRY_AFTER},
        503: {"Retry-After": _RETRY_AFTER},
        401: {"WWW-Authenticate": _CHALLENGE},
        415: {"Accept-Encoding": _UNCOMPRESSED},
    }
    content = content or {"content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    return {
        str(status): {"description": description, "headers": dict(headers.get(status, {})), **content}
        for status, description in statuses.items()
    }


def _headers() -> list[Schema]:
    """What a request may say besides its body."""
    return [_parameter("header", name, description, schema) for name, description, schema in _REQUEST_HEADERS]


def _parameter(place: str, name: str, description: str, schema: Schema) -> Schema:
    return {"in": place, "name": name, "required": False, "description": description, "schema": schema}


def _json_body(schema: Schema, example: Any = None) -> Schema:
    body = {"required": True, **_json_content(schema)}
    if example is not None:
        body["content"]["application/json"]["example"] = example
    return body


def _json_content(schema: Schema) -> Schema:
    return {"content": {"application/json": {"schema": schema}}}


def _schema(model: Any, schemas: Schema) -> Schema:
    """The schema of a type; those that it refers to become part of the document's."""
    schema = TypeAdapter(model).json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    return schema
