"""The outermost ASGI layer: request ids, API keys, problem documents, one log line and one count per request.

A plain ASGI class, because Starlette's BaseHTTPMiddleware hides a client's disconnect. Knows nothing of scores.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Collection
from typing import Any

from plaudit_service.errors import RequestError, Unauthorized, Unavailable
from plaudit_service.http.asgi import (
    INTERNAL_ERROR,
    PROBLEM_MEDIA_TYPE,
    App,
    ClientLeft,
    Message,
    Receive,
    Scope,
    Send,
    send_answer,
    send_problem,
)
from plaudit_service.logs import log
from plaudit_service.metrics import Metrics

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context, version 00
PROBES = frozenset({"/health", "/healthz", "/readyz"})


class Access:
    """Wraps the application.

    Args:
        app: The application.
        metrics: Where requests are counted.
        api_keys: Keys of which one must be given; empty: no key is asked for.
        fair_by_address: Whether clients are told apart by address where there are no keys.
        routes: Known paths; others are counted together as "other".
        open_routes: Paths, and prefixes that end with a slash ("/" itself is a path), of which GET needs no key.
    """

    def __init__(
        self,
        app: App,
        *,
        metrics: Metrics,
        api_keys: Collection[str],
        routes: Collection[str],
        open_routes: Collection[str] = (),
        fair_by_address: bool = False,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._key_digests = [_digest(key.encode()) for key in dict.fromkeys(api_keys)]
        self._fair_by_address = fair_by_address
        self._routes = frozenset(routes)
        self._open_routes = frozenset(open_routes)
        self._open_prefixes = tuple(route for route in open_routes if route.endswith("/") and route != "/")

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
        state = {**scope.get("state", {}), "log": fields, "client": "", "write_error": None}
        scope["state"] = state
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        outcome = None
        try:
            key = self._check_key(scope["method"], scope["path"], headers.get(b"authorization", b""))
            state["client"] = self._client(key, scope.get("client"))
            await self._app(scope, receive, send_with_id)
        except RequestError as error:
            outcome = error.slug
            self._metrics.rejected.labels(outcome).inc()
            await send_problem(send_with_id, error, state["write_error"])
        except ClientLeft:
            outcome = "cancelled"
        except asyncio.CancelledError:  # the grace period of draining is over: the server cancels what is still open
            outcome = "cancelled"
            if status == 0:
                stopped = Unavailable("the service stopped before this request was computed")
                await send_problem(send_with_id, stopped, state["write_error"])
        except Exception as error:  # noqa: BLE001  the last line of defence: no stack trace reaches the client
            outcome = "500"
            log("request_failed", level=logging.ERROR, error=error, request_id=request_id.decode())
            if status == 0:
                await send_answer(send_with_id, 500, PROBLEM_MEDIA_TYPE.encode(), json.dumps(INTERNAL_ERROR).encode())
        route = scope["path"] if scope["path"] in self._routes else "other"
        if outcome is None:
            outcome = "ok" if 200 <= status < 300 else str(status)
        seconds = time.monotonic() - started
        self._metrics.requests.labels(route, outcome).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        traceparent = headers.get(b"traceparent", b"")
        if _TRACEPARENT.fullmatch(traceparent):
            fields["traceparent"] = traceparent.decode()
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

    def _check_key(self, method: str, path: str, authorization: bytes) -> int | None:
        """Which of the keys was given; None where none is asked for.

        Raises:
            Unauthorized: none of them.
        """
        if not self._key_digests or self._is_open(method, path):
            return None
        scheme, _, key = authorization.partition(b" ")
        digest = _digest(key.strip())
        # All keys are compared, and digests of one length, so that the time tells nothing.
        matches = [hmac.compare_digest(digest, known) for known in self._key_digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise Unauthorized("send one of the service's API keys as the header Authorization: Bearer KEY")
        return matches.index(True)

    def _is_open(self, method: str, path: str) -> bool:
        """Only what is read is open: POST / of the dialect tei scores, while GET / is the console's page."""
        listed = path in self._open_routes or path.startswith(self._open_prefixes)
        return path in PROBES or (listed and method in ("GET", "HEAD"))

    def _client(self, key: int | None, address: tuple[str, int] | None) -> str:
        """Who shares queue and turns with others: a key, of several, or an address; "" where nobody is told apart."""
        if len(self._key_digests) > 1 and key is not None:
            return f"key {key}"
        if self._fair_by_address and not self._key_digests and address:
            return address[0]
        return ""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
