"""The ASGI types, and whole answers sent through them. Knows nothing of routes."""

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from plaudit_service.errors import BodyTimeout, RequestError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]
ErrorWriter = Callable[[RequestError], tuple[int, Any]]

PROBLEM_MEDIA_TYPE = "application/problem+json"


class ClientLeft(Exception):  # noqa: N818  no error of ours
    """The client closed its connection before its answer was there."""


async def send_answer(send: Send, status: int, media_type: bytes, body: bytes, headers: Headers = ()) -> None:
    """Send a whole answer."""
    about = [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": about})
    await send({"type": "http.response.body", "body": body})


async def send_problem(send: Send, error: RequestError, write: ErrorWriter | None = None) -> None:
    """Send an error as its RFC 9457 document, or as another status and JSON document that clients expect."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status == 415:
        headers.append((b"accept-encoding", b"identity"))
    if isinstance(error, BodyTimeout):  # the rest of the body would be taken for the next request
        headers.append((b"connection", b"close"))
    status, media_type = error.status, PROBLEM_MEDIA_TYPE
    document: Any = problem_document(error.status, error.title, error.detail, error.type)
    if write is not None:
        (status, document), media_type = write(error), "application/json"
    await send_answer(send, status, media_type.encode(), json.dumps(document).encode(), headers)


def problem_document(status: int, title: str, detail: str, type_: str = "about:blank") -> dict[str, Any]:
    """An RFC 9457 document; `about:blank`: there is no more to say than the status does."""
    return {"type": type_, "title": title, "status": status, "detail": detail}


INTERNAL_ERROR = problem_document(
    500, "Internal error", "this is a bug; the log has a line with this request's X-Request-Id"
)
