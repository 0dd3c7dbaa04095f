"""Receive a request within bounds of bytes and time, and notice when its client leaves. Knows nothing of scores."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from plaudit_service.errors import BodyTimeout, CompressedBody, QueueFull, TooLarge
from plaudit_service.http.asgi import ClientLeft, Receive
from plaudit_service.queueing.fairness import room
from plaudit_service.settings import Settings


class Room:
    """Bytes that all bodies being read and tokenized may hold together; clients share them as they do a queue."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used: Counter[str] = Counter()  # by client

    @contextmanager
    def share(self, client: str) -> Iterator["Share"]:
        """The part of one request, given back at the end.

        Args:
            client: Who shares the room with other clients; "": one who does not.
        """
        share = Share(self, client)
        try:
            yield share
        finally:
            share.release()

    def take(self, client: str, size: int) -> None:
        """Take more.

        Raises:
            QueueFull: there is no room now.
        """
        used, own = self._used.total(), self._used[client]
        left = room(self.limit, used, own) if client else self.limit - used
        if size > left:
            raise QueueFull(f"{used} bytes of requests are being read, limit {self.limit}; try again later")
        self._used[client] += size

    def give_back(self, client: str, size: int) -> None:
        """Hold so much less."""
        self._used[client] -= size
        if not self._used[client]:
            del self._used[client]


class Share:
    """One request's part of a room."""

    def __init__(self, whole: Room, client: str) -> None:
        self._room = whole
        self._client = client
        self._size = 0

    def grow(self, size: int) -> None:
        """Take more.

        Raises:
            TooLarge: the request alone is larger than the room.
            QueueFull: there is no room now.
        """
        limit = room(self._room.limit, 0, 0) if self._client else self._room.limit
        if self._size + size > limit:
            raise TooLarge(f"the request needs {self._size + size} bytes to be read, limit {limit}; split it")
        self._room.take(self._client, size)
        self._size += size

    def release(self) -> None:
        """Give all back."""
        self._room.give_back(self._client, self._size)
        self._size = 0


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], *, settings: Settings, share: Share) -> bytes:
    """Read a whole body.

    Args:
        receive: ASGI's.
        headers: Of the request.
        settings: How many bytes a body may have, and in how many seconds from now all of it has to arrive.
        share: Grows with what is held.

    Raises:
        CompressedBody: it is not sent as it is.
        TooLarge, QueueFull: there is no room for it, ever or now.
        BodyTimeout: it did not arrive in time.
        ClientLeft: the client closed the connection.
    """
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    if encoding not in ("", "identity"):
        raise CompressedBody(f"the body has Content-Encoding {encoding}; send it without, as plain JSON")
    limit, timeout_s = settings.max_body_bytes, settings.body_timeout_s
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the body has {int(declared)} bytes, limit {limit}; split the request")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                chunk = message.get("body", b"")
                if len(body) + len(chunk) > limit:
                    raise TooLarge(f"the body has more than {limit} bytes; split the request")
                share.grow(len(chunk))
                body += chunk
                more = message.get("more_body", False)
    except TimeoutError as error:
        raise BodyTimeout(f"{len(body)} bytes of the body arrived in {timeout_s:g} s; send it faster") from error
    return bytes(body)


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancel the body of the block when the client closes its connection. The request's body must have been read.

    Raises:
        ClientLeft: that happened.
    """
    work = asyncio.current_task()
    assert work is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        work.cancel()

    watcher = asyncio.get_running_loop().create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if left and work.uncancel() == 0:
            raise ClientLeft from None
        raise
    finally:
        watcher.cancel()
