"""Sends one HTTP request to one of the replicas and repeats it until it is answered, refused, or out of time.

Knows nothing of items and scores; what is worth another attempt is decided in `protocol` and `retry`.
"""

import asyncio
import itertools
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import httpx2

from plaudit_client.errors import ConnectionFailed, DeadlineExceeded, PlauditError, ServiceUnavailable
from plaudit_client.protocol import Reply, check_status
from plaudit_client.retry import Timing, next_delay_s

_CONNECT_TIMEOUT_S = 5.0
_PROBE_TIMEOUT_S = 5.0
_POLL_INTERVAL_S = 0.5
# An error's problem document is read up to here; what is longer is cut, and says nothing then.
_MAX_PROBLEM_BYTES = 64 * 1024


@dataclass(frozen=True)
class Deadline:
    """The time at which a call ends, whatever it waits for.

    Attributes:
        timeout_s: What the caller allowed.
        at: On the clock of `timing`.
        timing: The clock.
    """

    timeout_s: float
    at: float
    timing: Timing

    @classmethod
    def after(cls, timeout_s: float, timing: Timing) -> Self:
        """The deadline that is `timeout_s` from now."""
        return cls(timeout_s, timing.clock() + timeout_s, timing)

    @property
    def remaining_s(self) -> float:
        """Seconds left, 0 when it has passed."""
        return max(0.0, self.at - self.timing.clock())


class Exchange:
    """The connections to all replicas.

    Args:
        urls: Base URLs; requests take turns, and a retry goes to the next one.
        headers: Of every request.
        transport: Instead of the network, for tests.
        max_concurrency: Attempts in flight at once.
        max_retries: Of one request; None: until the deadline.
        timing: Clock, sleep and chance.
    """

    def __init__(
        self,
        urls: Sequence[str],
        headers: Mapping[str, str],
        *,
        transport: httpx2.AsyncBaseTransport | None,
        max_concurrency: int,
        max_retries: int | None,
        timing: Timing,
    ) -> None:
        self._urls = urls
        self._turns = itertools.count()
        self._max_retries = max_retries
        self._timing = timing
        self._slots = asyncio.Semaphore(max_concurrency)
        self._http = httpx2.AsyncClient(
            headers=headers,
            transport=transport,
            # The rest of the time is bounded by deadlines: a read timeout never fires on one byte per second.
            timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=max_concurrency),
        )

    async def send(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        max_answer_bytes: int,
        body: bytes | None = None,
        about: str = "",
    ) -> Reply:
        """Send a request, again if need be, until it is answered with status 200.

        Args:
            method: HTTP method.
            path: Below the base URL.
            deadline: Of the whole call, waits and retries included.
            max_answer_bytes: More are not read.
            body: JSON.
            about: Which part of the call this is, for messages.

        Raises:
            ConnectionFailed: There was no answer, also not to the last attempt.
            ServiceUnavailable: The answer to the last attempt was that the service cannot answer now.
            RequestRejected: The service refused the request.
            DeadlineExceeded: The deadline passed during an attempt.
            PlauditError: The client is closed.
        """
        if self._http.is_closed:
            raise PlauditError("client: closed; make a new one")
        request_id = uuid.uuid4().hex
        turn = next(self._turns)
        failure: PlauditError | None = None
        try:
            async with asyncio.timeout(deadline.remaining_s):
                for retries_done in itertools.count():
                    url = self._urls[(turn + retries_done) % len(self._urls)] + path
                    try:
                        async with self._slots:
                            reply = await self._attempt(
                                method, url, deadline.remaining_s, request_id, max_answer_bytes, body, about
                            )
                        check_status(reply)
                    except (ConnectionFailed, ServiceUnavailable) as error:
                        failure = error
                        error.attempts = retries_done + 1
                        delay_s = next_delay_s(
                            retries_done,
                            max_retries=self._max_retries,
                            retry_after_s=getattr(error, "retry_after_s", None),
                            remaining_s=deadline.remaining_s,
                            chance=self._timing.random(),
                        )
                        if delay_s is None:
                            raise
                        await self._timing.sleep(delay_s)
                    else:
                        return reply
        except TimeoutError as error:
            raise _exceeded(f"{method} {path}{about}: no answer", deadline, failure) from error
        raise AssertionError("the loop above ends by return or raise")

    async def wait_until_ready(self, deadline: Deadline) -> None:
        """Ask the replicas in turn for /readyz until one says yes.

        Raises:
            DeadlineExceeded: None did.
        """
        failure: PlauditError | None = None
        while (remaining_s := deadline.remaining_s) > 0:
            url = self._urls[next(self._turns) % len(self._urls)] + "/readyz"
            probe_s = min(_PROBE_TIMEOUT_S, remaining_s)
            try:
                async with asyncio.timeout(probe_s):
                    check_status(await self._attempt("GET", url, probe_s, uuid.uuid4().hex, _MAX_PROBLEM_BYTES))
            except PlauditError as error:
                failure = error
            except TimeoutError:
                failure = DeadlineExceeded(f"GET {url}: no answer within {probe_s:g} s")
            else:
                return
            await self._timing.sleep(min(_POLL_INTERVAL_S, deadline.remaining_s))
        raise _exceeded("GET /readyz: not ready", deadline, failure)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _attempt(
        self,
        method: str,
        url: str,
        timeout_s: float,
        request_id: str,
        max_answer_bytes: int,
        body: bytes | None = None,
        about: str = "",
    ) -> Reply:
        headers = {"X-Request-Id": request_id, "X-Request-Timeout-S": f"{timeout_s:.3f}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        where = f"{method} {url}{about} (request {request_id})"
        try:
            async with self._http.stream(method, url, content=body, headers=headers) as response:
                max_bytes = max_answer_bytes if response.status_code == 200 else _MAX_PROBLEM_BYTES
                answer = await _read_bounded(response, max_bytes)
                return Reply(where, response.status_code, response.headers, answer, max_bytes)
        except httpx2.TransportError as error:
            raise ConnectionFailed(f"{where}: {_reason(error)}; check that the service runs there") from error


async def _read_bounded(response: httpx2.Response, max_bytes: int) -> bytes:
    """The body, or where it is longer, its first `max_bytes` + 1 bytes; a compressed one is not read."""
    body = bytearray()
    if "content-encoding" in response.headers:  # nobody asked for it, and the check of the answer refuses it
        return b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > max_bytes:
            break
    return bytes(body[: max_bytes + 1])


def _reason(error: BaseException) -> str:
    """What the operating system says, if it is at the root; "All connection attempts failed" helps nobody."""
    root: BaseException | None = error
    while root is not None:
        if isinstance(root, OSError) and root.errno is not None:
            return os.strerror(root.errno) if root.errno > 0 else str(root.strerror)
        root = root.__cause__ or root.__context__
    return " ".join(str(error).split()) or type(error).__name__


def _exceeded(what: str, deadline: Deadline, failure: PlauditError | None) -> DeadlineExceeded:
    last = "" if failure is None else f"; last failure: {failure}"
    return DeadlineExceeded(f"{what} within {deadline.timeout_s:g} s{last}; allow more time with timeout_s")
