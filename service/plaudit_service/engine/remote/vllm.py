"""One vLLM server over HTTP. Alone in knowing its HTTP client (aiohttp), and made in no event loop.

What is no answer is `Lost`; 400 alone is about what was asked. Knows nothing of other servers.
"""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
import numpy as np
import numpy.typing as npt

from plaudit_service.engine.remote.pooling import (
    AnswerError,
    Served,
    answer_bytes,
    parse_heads,
    parse_models,
    parse_start,
    parse_version,
    pooling_request,
)
from plaudit_service.text.token_ids import Ids

# vLLM closes idle connections after 5 s; one that is closed as it is used would cost a second attempt.
_KEEP_ALIVE_S = 2.0
_CONNECT_TIMEOUT_S = 5.0
# Of probes: a busy server answers them late.
_PROBE_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 16 << 20

Reason = Literal["down", "hangs", "overloaded", "restarted", "wrong"]


class Lost(Exception):  # noqa: N818  named as what has become of the server
    """A server can be asked no more until it has passed the check again.

    Args:
        reason: What it is, for metrics.
        detail: One line.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Connection:
    """How servers are reached.

    Attributes:
        timeout_s: limit of one call.
        key: sent as a bearer token; empty: none.
        tls: whose certificates are trusted; None: those of the system.
    """

    timeout_s: float
    key: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None


class Vllm:
    """A server.

    Args:
        url: Its base URL.
        connection: Limits, key, certificates.

    Attributes:
        num_connections: How many were made so far: behind each new one may be another process.
    """

    def __init__(self, url: str, connection: Connection) -> None:
        self.url = url
        self.num_connections = 0
        self._connection = connection
        self._headers = {"Authorization": f"Bearer {connection.key}"} if connection.key else {}
        self._session: aiohttp.ClientSession | None = None

    async def describe(self) -> Served:
        """What it serves.

        Raises:
            Lost: it does not answer, or is no such server.
        """
        await self.probe()
        try:
            model, max_tokens = parse_models(await self._get("/v1/models"))
            version = parse_version(await self._get("/version"))
        except AnswerError as error:
            raise Lost("wrong", str(error)) from error
        return Served(model, max_tokens, version, await self.started())

    async def probe(self) -> None:
        """Whether it says that it lives.

        Raises:
            Lost: it does not.
        """
        await self._get("/health")

    async def started(self) -> float | None:
        """When its process began; None: it does not say.

        Raises:
            Lost: it does not answer.
        """
        return parse_start(await self._get("/metrics"))

    async def heads(
        self, model: str, sequences: Sequence[Ids], num_heads: int, salt: str | None = None
    ) -> npt.NDArray[np.float32] | None:
        """Raw head values of sequences, shape (B, heads), which need not be finite. Cancelled, the server is told.

        None: it refuses the list for one of its sequences.

        Raises:
            Lost: it gives no answer, or one of another length.
        """
        status, body = await self._call(
            "POST",
            "/pooling",
            pooling_request(model, sequences, salt),
            timeout_s=self._connection.timeout_s,
            max_bytes=answer_bytes(len(sequences), num_heads),
        )
        if status == 400:
            return None
        if status != 200:
            raise Lost("overloaded" if status == 503 else "down", f"/pooling answers {status}{_remedy(status)}")
        try:
            return parse_heads(body, len(sequences), num_heads)
        except AnswerError as error:
            raise Lost("wrong", str(error)) from error

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _get(self, path: str) -> bytes:
        status, body = await self._call("GET", path, None, timeout_s=_PROBE_TIMEOUT_S, max_bytes=_MAX_ANSWER_BYTES)
        if status != 200:
            raise Lost("down", f"{path} answers {status}{_remedy(status)}")
        return body

    async def _call(
        self, method: str, path: str, body: bytes | None, *, timeout_s: float, max_bytes: int
    ) -> tuple[int, bytes]:
        """Status, and the body or one byte more of it than allowed.

        Raises:
            Lost: there is none in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    return await self._send(method, path, body, max_bytes)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                    if isinstance(error, aiohttp.ClientConnectorError):
                        raise
                    # A kept connection may have been closed meanwhile; what is asked may be asked twice.
                    return await self._send(method, path, body, max_bytes)
        except TimeoutError as error:
            raise Lost("hangs", f"no answer to {path} within {timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            remedy = "; set --engine-ca-file" if isinstance(error, aiohttp.ClientConnectorCertificateError) else ""
            raise Lost("down", f"no answer to {path} ({type(error).__name__}){remedy}") from error

    async def _send(self, method: str, path: str, body: bytes | None, max_bytes: int) -> tuple[int, bytes]:
        if self._session is None:
            self._session = self._open_session()
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        async with self._session.request(
            method, self.url + path, data=body, headers=headers, allow_redirects=False
        ) as response:
            received = bytearray()
            async for chunk in response.content.iter_any():
                received += chunk
                if len(received) > max_bytes:
                    response.close()
                    break
            return response.status, bytes(received[: max_bytes + 1])

    def _open_session(self) -> aiohttp.ClientSession:
        """Proxies of the environment are not used: what is scored goes to the server and nowhere else."""

        async def count(*_: object) -> None:
            self.num_connections += 1

        counting, tls = aiohttp.TraceConfig(), self._connection.tls
        counting.on_connection_create_end.append(count)
        return aiohttp.ClientSession(
            # How many connections there are is bounded by the calls in flight.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S, ssl=True if tls is None else tls),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trace_configs=[counting],
        )


def _remedy(status: int) -> str:
    if status in {401, 403}:
        return "; set --engine-key-file to the file of its key"
    if status == 404:
        return "; start it with --runner pooling"
    return ""
