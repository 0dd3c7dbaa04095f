"""The outermost ASGI layer: request ids, API keys, one log line and one count per request, no stack trace outside.

A plain ASGI class, because Starlette's BaseHTTPMiddleware hides a client's disconnect. Knows nothing of scores.
"""

import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from plaudit_service.errors import RequestError, Unauthorized
from plaudit_service.logs import log
from plaudit_service.metrics import Metrics

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_PROBES = frozenset({"/healthz", "/readyz"})

PROBLEM_MEDIA_TYPE = "application/problem+json"


def problem(error: RequestError) -> dict[str, Any]:
    """The RFC 9457 document of an error."""
    return {"type": error.type, "title": error.title, "status": error.status, "detail": error.detail}


class Access:
    """Wraps the application.

    Args:
        app: The application.
        metrics: Where requests are counted.
        api_keys: Keys of which one must be given; empty: no key is asked for.
        routes: Known paths; others are counted together as "other".
        open_routes: Paths that need no key besides the probes.
    """

    def __init__(
        self,
        app: App,
        *,
        metrics: Metrics,
        api_keys: Collection[str],
        routes: Collection[str],
        open_routes: Collection[str] = (),
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._key_digests = [_digest(key.encode()) for key in api_keys]
        self._routes = frozenset(routes)
        self._open_routes = _PROBES | frozenset(open_routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass a lifespan or websocket scope on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        fields: dict[str, Any] = {}
        scope["state"] = {**scope.get("state", {}), "log": fields}
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            if self._is_allowed(scope["path"], headers.get(b"authorization", b"")):
                await self._app(scope, receive, send_with_id)
            else:
                fields["outcome"] = Unauthorized.slug
                self._metrics.rejected.labels(Unauthorized.slug).inc()
                await _send_unauthorized(send_with_id)
        except Exception as error:  # noqa: BLE001  the last line of defence: the answer was sent, the log names the class
            log("request_failed", level=logging.ERROR, error=error, request_id=request_id.decode())
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            outcome = fields.pop("outcome", "ok" if 200 <= status < 300 else str(status) if status else "cancelled")
            seconds = time.monotonic() - started
            self._metrics.requests.labels(route, outcome).inc()
            self._metrics.request_seconds.labels(route).observe(seconds)
            log(
                "request",
                request_id=request_id.decode(),
                route=route,
                method=scope["method"],
                status=status,
                outcome=outcome,
                seconds=round(seconds, 6),
                **fields,
            )

    def _is_allowed(self, path: str, authorization: bytes) -> bool:
        if not self._key_digests or path in self._open_routes:
            return True
        scheme, _, key = authorization.partition(b" ")
        digest = _digest(key.strip())
        # All keys are compared, and digests of one length, so that the time tells nothing.
        matches = [hmac.compare_digest(digest, known) for known in self._key_digests]
        return scheme.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


async def _send_unauthorized(send: Send) -> None:
    error = Unauthorized("send one of the service's API keys as the header Authorization: Bearer KEY")
    body = json.dumps(problem(error)).encode()
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Bearer"),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
