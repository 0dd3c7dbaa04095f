"""A proxy between client and replica that can go wrong in the ways of networks and of other proxies.

It forwards one request after the other of a connection, by `Content-Length`, which client and service always send.
"""

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from types import TracebackType
from typing import Self

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LIMIT = 64 * 1024 * 1024
_HTML = (
    b"<html><head><title>502 Bad Gateway</title></head><body><center><h1>502 Bad Gateway</h1></center></body></html>"
)
_BAD_GATEWAY = (
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    % len(_HTML)
) + _HTML
_DELAY_S = 0.7
_TICK_S = 0.05
_WATCH_S = 0.001

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """Listens on a port of its own and forwards to another; use as a context manager.

    Args:
        port: Of the replica.
        seed: What it does by chance, such as where a body is cut.

    Attributes:
        fault: What goes wrong now; None: nothing.
        done: How often each fault was felt by a request.
        num_posts: POST requests that were answered without a fault.
    """

    def __init__(self, port: int, seed: str) -> None:
        self.fault: str | None = None
        self.done: Counter[str] = Counter()
        self.num_posts = 0
        self._target = port
        self._chance = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._connections: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait_for_posts(self, count: int, seconds: float, over: threading.Event) -> None:
        """Return once so many POST requests more were answered, or the time is over."""
        end, enough = time.monotonic() + seconds, self.num_posts + count
        while self.num_posts < enough and time.monotonic() < end and not over.wait(_WATCH_S):
            pass

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_LIMIT)

    async def _end(self) -> None:
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        upstream: Streams | None = None
        try:
            while (request := await _read_message(reader)) is not None:
                if upstream is None:
                    upstream = await asyncio.open_connection("127.0.0.1", self._target, limit=_LIMIT)
                if not await self._exchange(request, (reader, writer), upstream):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            _reset(writer)
        finally:
            self._connections.discard(task)
            for _, open_writer in [(reader, writer), *([upstream] if upstream else [])]:
                open_writer.close()

    async def _exchange(self, request: bytes, client: Streams, upstream: Streams) -> bool:
        """Forward a request and its answer, or what the fault makes of them; whether the connection goes on."""
        fault, (reader, writer) = self.fault, client
        if fault is not None:
            self.done[fault] += 1
        if fault == "half-open":
            while self.fault == fault and not _has_left(reader):  # noqa: ASYNC110  another thread sets it
                await asyncio.sleep(_TICK_S)
        if fault in {"half-open", "reset"}:
            _reset(writer)
            return False
        if fault == "html" and self._chance.random() < 0.5:  # else the request arrives, and its answer is lost
            return await _write_last(writer, _BAD_GATEWAY)
        if fault == "delay":
            await asyncio.sleep(self._chance.uniform(0, _DELAY_S))
        upstream[1].write(request)
        await upstream[1].drain()
        answer = await _while_connected(reader, _read_message(upstream[0]))
        if answer is None:
            _reset(writer)
            return False
        if fault == "html":
            return await _write_last(writer, _BAD_GATEWAY)
        if fault == "cut":
            return await _write_last(writer, answer[: self._chance.randrange(len(answer))])
        if fault == "delay":
            half = len(answer) // 2
            writer.write(answer[:half])
            await writer.drain()
            await asyncio.sleep(self._chance.uniform(0, _DELAY_S))
            answer = answer[half:]
        writer.write(answer + answer if fault == "duplicate" else answer)
        await writer.drain()
        self.num_posts += fault is None and request.startswith(b"POST")
        return True


async def _read_message(reader: asyncio.StreamReader) -> bytes | None:
    """One request or answer, head and body; None where the other side has closed."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    length = _LENGTH.search(head)
    return head + (await reader.readexactly(int(length[1])) if length else b"")


async def _while_connected(reader: asyncio.StreamReader, answer: Coroutine[None, None, bytes | None]) -> bytes | None:
    """The answer, unless who asked has gone."""
    answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(_wait_for_end(reader))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _wait_for_end(reader: asyncio.StreamReader) -> None:
    while not _has_left(reader):  # noqa: ASYNC110  a reader tells its end to nobody who does not read
        await asyncio.sleep(_TICK_S)


def _has_left(reader: asyncio.StreamReader) -> bool:
    """Whether the other side has closed, or broken, its connection."""
    return reader.at_eof() or reader.exception() is not None


async def _write_last(writer: asyncio.StreamWriter, answer: bytes) -> bool:
    writer.write(answer)
    await writer.drain()
    return False


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # it is closed already
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
