"""What the client asks of an HTTP library, and `Network`, which gets it from aiohttp. Alone in knowing aiohttp.

Sends one request to one address, once. Knows nothing of items, replicas to choose from, and retries.
"""

import asyncio
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from plaudit_client.errors import ConnectionFailed

_CONNECT_TIMEOUT_S = 5.0
# An error's problem document is read up to here; what is longer is cut, and says nothing then.
_MAX_PROBLEM_BYTES = 64 * 1024


@dataclass(frozen=True)
class HttpRequest:
    """One attempt.

    Attributes:
        method: HTTP method.
        url: All of it.
        headers: All but those that belong to the connection.
        body: JSON, or None.
        max_answer_bytes: No more of a 200's body is read than this and one byte.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)  # neither the key nor a prompt is to end up in a log
    body: bytes | None = field(default=None, repr=False)
    max_answer_bytes: int = _MAX_PROBLEM_BYTES

    @property
    def path(self) -> str:
        """The path of the URL."""
        return urlsplit(self.url).path


@dataclass(frozen=True)
class HttpResponse:
    """Its answer: status, headers (names in lower case), and the body, cut where it was longer than allowed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Carries requests; `Network` does it for real, `plaudit_client.testing.FakeService` in memory."""

    async def resolve(self, url: str) -> Sequence[str]:
        """The addresses behind a base URL; each counts as a replica.

        Raises:
            ConnectionFailed: There is none.
        """

    async def send(self, request: HttpRequest, address: str) -> HttpResponse:
        """Send a request, once, to one of the addresses of its URL.

        Raises:
            ConnectionFailed: No whole answer came.
        """

    async def disconnect(self, url: str, address: str) -> None:
        """Close the connections to one address, as soon as none is busy."""

    async def close(self) -> None:
        """Close all connections."""


class Network:
    """Real sockets. Connections are kept, but none is used for new requests when it is old.

    So a client spreads to new replicas also where one address stands for many, as behind a load balancer. Proxies of
    the environment are not used: rollouts go to the service and nowhere else.

    Args:
        max_age_s: Age at which connections are replaced.
        clock: Seconds that only grow.
    """

    def __init__(self, *, max_age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_age_s = max_age_s
        self._clock = clock
        self._pools: dict[tuple[str, str], _Pool] = {}
        self._aged: set[_Pool] = set()

    async def resolve(self, url: str) -> Sequence[str]:
        """The IPv4 addresses of the URL's host, or where it has none, the IPv6 ones."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if _is_ip_address(host):
            return (host,)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, parts.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConnectionFailed(f"{url}: {error.strerror}; check the host name", connected=False) from error
        addresses = {family: [str(entry[4][0]) for entry in found if entry[0] == family] for family, *_ in found}
        # Both families lead to the same replicas; were each taken, a replica would count twice.
        return tuple(dict.fromkeys(addresses.get(socket.AF_INET) or addresses[socket.AF_INET6]))

    async def send(self, request: HttpRequest, address: str) -> HttpResponse:
        """Send a request, once."""
        pool = self._get_pool(request.url, address)
        pool.in_flight += 1
        try:
            return await _send(pool.session, request)
        except aiohttp.ClientError as error:
            connected = not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
            raise ConnectionFailed(_reason(error), connected=connected) from error
        finally:
            pool.in_flight -= 1
            await self._close_aged()

    async def disconnect(self, url: str, address: str) -> None:
        """Close the connections to one address, as soon as none is busy."""
        pool = self._pools.pop(_key(url, address), None)
        if pool is not None:
            self._aged.add(pool)
        await self._close_aged()

    async def close(self) -> None:
        """Close all connections."""
        pools = [*self._pools.values(), *self._aged]
        self._pools.clear()
        self._aged.clear()
        for pool in pools:
            await pool.session.close()

    def _get_pool(self, url: str, address: str) -> "_Pool":
        """The connections for new requests; takes the old ones out of use, also of addresses that are asked no more."""
        now = self._clock()
        for key, pool in list(self._pools.items()):
            if now - pool.made_at >= self._max_age_s:
                self._aged.add(self._pools.pop(key))
        key = _key(url, address)
        if key not in self._pools:
            self._pools[key] = _Pool(_open_session(address), made_at=now)
        return self._pools[key]

    async def _close_aged(self) -> None:
        """Close those connections that are old, as soon as none of them is busy."""
        idle = {pool for pool in self._aged if pool.in_flight == 0}
        self._aged -= idle
        for pool in idle:
            await pool.session.close()


@dataclass(eq=False)
class _Pool:
    """The connections to one address."""

    session: aiohttp.ClientSession
    made_at: float
    in_flight: int = 0


def _key(url: str, address: str) -> tuple[str, str]:
    """What connections may be shared for."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}", address


def _open_session(address: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # How many there are is bounded by the requests in flight.
        connector=aiohttp.TCPConnector(limit=0, resolver=_OneAddress(address), use_dns_cache=False),
        # The rest of the time is bounded by deadlines: a read timeout never fires on one byte per second.
        timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


class _OneAddress(AbstractResolver):
    """Leads every host name to the one address, so that the name stays in the Host header and the TLS handshake."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [ResolveResult(hostname=host, host=self._address, port=port, family=family, proto=0, flags=flags)]

    async def close(self) -> None:
        pass


async def _send(session: aiohttp.ClientSession, request: HttpRequest) -> HttpResponse:
    async with session.request(
        request.method, request.url, data=request.body, headers=request.headers, allow_redirects=False
    ) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        max_bytes = request.max_answer_bytes if response.status == 200 else _MAX_PROBLEM_BYTES
        body = bytearray()
        if "content-encoding" not in headers:  # nobody asked for it, and the check of the answer refuses it
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    response.close()
                    break
        return HttpResponse(response.status, headers, bytes(body[: max_bytes + 1]))


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _reason(error: BaseException) -> str:
    """What the operating system says, if it is at the root; the library's own sentence is long."""
    root: BaseException | None = error
    while root is not None:
        if isinstance(root, OSError) and root.errno is not None:
            return os.strerror(root.errno) if root.errno > 0 else str(root.strerror)
        root = root.__cause__ or root.__context__
    return " ".join(str(error).split()) or type(error).__name__
