"""uvicorn's HTTP connection with bounds on what it waits for: headers in size and time, bodies in time.

uvicorn has no receive timeout of its own, and httptools no limit of headers. Knows nothing of routes.
"""

import asyncio
import json
import re
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from plaudit_service.http.asgi import PROBLEM_MEDIA_TYPE, problem_document
from plaudit_service.settings import Settings

# httptools takes what follows this header for another protocol, and the body would be lost. Java's client offers HTTP/2
# so with its first request; HTTP/1.1 goes on where the offer is ignored (RFC 9110, section 7.8).
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)

# The application answers 408 to a slow body that it waits for. This later cut is for a body that nobody reads.
_UNREAD_BODY_GRACE_S = 5.0


def connection_class(settings: Settings) -> type["Connection"]:
    """The protocol class for uvicorn, with the limits of the settings."""

    class Limited(Connection):
        max_connections = settings.max_connections
        max_header_bytes = settings.max_header_bytes
        header_timeout_s = settings.header_timeout_s
        body_timeout_s = settings.body_timeout_s + _UNREAD_BODY_GRACE_S

    return Limited


class Connection(HttpToolsProtocol):
    """One connection. A request that arrives whole costs no timer; one that is still on its way has one."""

    max_connections: int
    max_header_bytes: int
    header_timeout_s: float
    body_timeout_s: float

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_headers = True
        self._header_bytes = 0
        self._refusal = HTTPStatus.BAD_REQUEST, "this is not a valid HTTP/1.1 request"
        self._allowed_s: float | None = None  # for the part of a request that is on its way, if any
        self._part = self._timed_part = 0  # counts the parts, headers and bodies alike
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse one connection too many; else wait for its first request, but not for long."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._expect(self.header_timeout_s)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._expect(None)
        self._set_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and time what is still missing."""
        part, was_in_headers = self._part, self._in_headers
        if was_in_headers and b"pgrade:" in data:
            data = _UPGRADE.sub(b"\r\nx-ignored:", data, count=1)
        super().data_received(data)
        if was_in_headers and self._in_headers and self._part - part <= 1:  # the data were headers and nothing else
            self._header_bytes += len(data)
            if self._header_bytes > self.max_header_bytes and not self.transport.is_closing():
                self._refuse_headers()
                self.send_400_response("")
            if self._allowed_s is None:  # blank lines, which ended uvicorn's timer of idle connections
                self._expect(self.header_timeout_s)
        if self._part != self._timed_part:
            self._set_timer()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        self._expect(self.header_timeout_s)

    def on_headers_complete(self) -> None:
        """Its body begins, or its end is reached."""
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > self.max_header_bytes:
            self._refuse_headers()
            raise ValueError  # the parser stops and `send_400_response` is called
        super().on_headers_complete()
        self._in_headers = False
        self._expect(self.body_timeout_s)

    def on_message_complete(self) -> None:
        """All of the request is here."""
        super().on_message_complete()
        self._in_headers = True
        self._expect(None)

    def send_400_response(self, msg: str) -> None:
        """Answer what never became a request, and close the connection."""
        status, detail = self._refusal
        body = json.dumps(problem_document(status, status.phrase, detail)).encode()
        head = f"content-type: {PROBLEM_MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also one whose client never reads its answer."""
        self.transport.abort()

    def _refuse_headers(self) -> None:
        detail = f"the request's headers have more than {self.max_header_bytes} bytes; send fewer"
        self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail

    def _expect(self, seconds: float | None) -> None:
        self._part += 1
        self._allowed_s = seconds

    def _set_timer(self) -> None:
        self._timed_part = self._part
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if self._allowed_s is None else self.loop.call_later(self._allowed_s, self._cut)

    def _cut(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if self.flow.read_paused or (self._in_headers and is_answering):  # the client may be waiting for us
            self._set_timer()
        else:
            self.transport.abort()
