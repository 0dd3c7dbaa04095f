"""A lean HTTP/1.1 load generator: raw sockets, keep-alive, requests serialized before the first is sent.

It shares the machine with the service that it loads, so it has to cost little; the benchmark states what it costs.
Of HTTP it knows what plaudit, the plain handler and vLLM answer with: a Content-Length, or chunks.
"""

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """What came back; status 0: no whole answer within the time. Times are the event loop's, in seconds."""

    status: int
    head: bytes
    body: bytes
    since: float
    finished: float

    @property
    def seconds(self) -> float:
        """From when the request was due to the last byte of the answer."""
        return self.finished - self.since

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """The value of a header."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.lower().encode():
                return value.strip().decode()
        return None

    def server_timing(self) -> dict[str, float]:
        """The durations of Server-Timing, in seconds."""
        entries = [entry.strip().split(";dur=") for entry in (self.header("server-timing") or "").split(",")]
        return {entry[0]: float(entry[1]) / 1000 for entry in entries if len(entry) == 2}


def post(url: str, document: Any, *, path: str = "/score", headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a request; a document that is bytes already is sent as it is."""
    body = document if isinstance(document, bytes) else json.dumps(document, separators=(",", ":")).encode()
    parts = urlsplit(url)
    lines = [f"POST {parts.path}{path} HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


class Client:
    """Sends requests over as many connections as are in use at once, up to a limit; idle ones are kept."""

    def __init__(self, url: str, *, max_connections: int = 1024) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._idle: list[_Connection] = []
        self._slots = asyncio.Semaphore(max_connections)
        self._loop = asyncio.get_running_loop()

    async def send(self, request: bytes, *, timeout_s: float = 600.0, since: float | None = None) -> Answer:
        """Send a request and wait for its answer; never raises for what the server does.

        Args:
            request: Bytes as `post` makes them.
            timeout_s: From now; after it the connection is closed, as by a client that leaves.
            since: When the request was due, if not now.
        """
        now = self._loop.time()
        since = now if since is None else since
        connection = None
        try:
            async with self._slots, asyncio.timeout_at(now + timeout_s):
                connection = await self._connection()
                head, body = await connection.exchange(request)
        except (TimeoutError, OSError):
            if connection is not None:
                connection.close()
            return Answer(0, b"", b"", since, self._loop.time())
        if b"connection: close" in head.lower():
            connection.close()
        elif connection.is_open:
            self._idle.append(connection)
        return Answer(int(head[9:12]), head, body, since, self._loop.time())

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connection(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return (await self._loop.create_connection(_Connection, *self._address))[1]


class _Connection(asyncio.Protocol):
    """One connection with one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._answer: asyncio.Future[tuple[bytes, bytes]] | None = None
        self._received = bytearray()
        self._body_at = 0
        self._size: int | None = 0
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.is_open = transport, True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed before the answer was whole"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._body_at:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            self._body_at = end + 4
            self._size = _content_length(bytes(self._received[:end]))
        if self._size is not None and len(self._received) < self._body_at + self._size:
            return
        head, body = bytes(self._received[: self._body_at - 4]), bytes(self._received[self._body_at :])
        whole = _join_chunks(body) if self._size is None else body
        if whole is not None and self._answer and not self._answer.done():
            self._answer.set_result((head, whole))

    async def exchange(self, request: bytes) -> tuple[bytes, bytes]:
        """Head and body of the answer to a request."""
        self._received.clear()
        self._body_at = 0
        self._answer = self._loop.create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.is_open = False
        self._transport.abort()


def _content_length(head: bytes) -> int | None:
    """None: it comes in chunks."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
        if line == b"transfer-encoding: chunked":
            return None
    raise ValueError("an answer without Content-Length that is not chunked: this load generator reads no other")


def _join_chunks(body: bytes) -> bytes | None:
    """A body that came in chunks; None where it is not whole yet."""
    whole, at = bytearray(), 0
    while (end := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:end], 16)
        at = end + 2 + size + 2
        if len(body) < at:
            return None
        if size == 0:
            return bytes(whole)
        whole += body[end + 2 : at - 2]
    return None


async def closed_loop(url: str, requests: Sequence[bytes], *, connections: int) -> list[Answer]:
    """Answers in the order of the requests; each connection sends its next when its last is answered."""
    client = Client(url)
    answers: list[Answer | None] = [None] * len(requests)
    waiting = iter(range(len(requests)))

    async def work() -> None:
        for at in waiting:
            answers[at] = await client.send(requests[at])

    await asyncio.gather(*(work() for _ in range(connections)))
    client.close()
    return [answer for answer in answers if answer is not None]


async def open_loop(url: str, requests: Sequence[bytes], due_s: Sequence[float]) -> list[Answer]:
    """Answers in the order of the requests, each sent when it is due, whatever became of those before it.

    Latency counts from when a request was due, so a generator that is late does not hide a slow server.
    """
    client = Client(url)
    loop = asyncio.get_running_loop()
    begin = loop.time()

    async def send(request: bytes, due: float) -> Answer:
        await asyncio.sleep(due - loop.time())
        return await client.send(request, since=due)

    pairs = zip(requests, due_s, strict=True)
    answers = await asyncio.gather(*(send(request, begin + due) for request, due in pairs))
    client.close()
    return list(answers)


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of independent arrivals, `rate` per second on average, within `seconds`."""
    source = random.Random(seed)
    times: list[float] = []
    now = source.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += source.expovariate(rate)
    return times
