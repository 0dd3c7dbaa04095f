"""The replicas of a service as they are now: looked up, chosen, tried once, ejected, probed.

Knows nothing of items, scores and retries of a request; which replica is the best is decided in `replicas`.
"""

import asyncio
import itertools
import logging
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from plaudit_client.errors import ConnectionFailed, PlauditError, RequestRejected, ServiceUnavailable
from plaudit_client.protocol import Reply, check_status
from plaudit_client.replicas import Replica, Replicas
from plaudit_client.retry import Timing, probe_delay_s
from plaudit_client.transport import HttpRequest, Transport

_MAX_PROBE_BYTES = 64 * 1024

_log = logging.getLogger("plaudit_client")


@dataclass(frozen=True)
class Call:
    """A request before it is known which replica gets it.

    Attributes:
        method: HTTP method.
        path: Below the base URL.
        max_answer_bytes: More are not read.
        body: JSON.
        num_sequences: How much work it is.
        about: Which part of the user's call this is, for messages.
        headers: Of this request.
    """

    method: str
    path: str
    max_answer_bytes: int
    body: bytes | None = field(default=None, repr=False)
    num_sequences: int = 1
    about: str = ""
    headers: Mapping[str, str] | None = None


_READY = Call("GET", "/readyz", _MAX_PROBE_BYTES)
_ALIVE = Call("GET", "/healthz", _MAX_PROBE_BYTES)


class Fleet:
    """All replicas behind the URLs.

    A replica that cannot be reached, breaks a connection, says 503, or is silent while another is there, is ejected:
    it gets no requests until the one task that then probes it finds it ready.

    Args:
        replicas: With the URLs.
        headers: Of every request.
        transport: Carries the requests.
        timing: Clock, sleep and chance.
    """

    def __init__(self, replicas: Replicas, headers: Mapping[str, str], *, transport: Transport, timing: Timing) -> None:
        self.replicas = replicas
        self._headers = headers
        self._transport = transport
        self._timing = timing
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lookup: asyncio.Task[None] | None = None
        self._looked_up_at: float | None = None

    async def choose(self, *, exclude: Collection[Replica] = (), avoid: Replica | None = None) -> Replica:
        """The best replica, as soon as one is usable.

        Raises:
            ConnectionFailed: No host name leads anywhere.
        """
        while True:
            await self._look_up_first()
            changed = self._changed
            replica = self.replicas.pick(self._timing.clock(), exclude=exclude, avoid=avoid)
            if replica is not None:
                return replica
            await changed.wait()

    async def attempt(self, replica: Replica, call: Call) -> Reply:
        """Send a request to a replica, once, and let only an answer with status 200 pass.

        A replica that does not answer for long is asked whether it lives; if it does not say so and another one is
        usable, the attempt ends.

        Raises:
            ConnectionFailed: There was no answer.
            ServiceUnavailable: The service cannot answer now.
            RequestRejected: It refused the request.
        """
        replica.outstanding += call.num_sequences
        sending = asyncio.ensure_future(self._send(replica, call))
        try:
            while not (await asyncio.wait({sending}, timeout=self._timing.silence_s))[0]:
                is_silent = self.replicas.has_other(replica) and not await self._answers(replica, _ALIVE)
                if is_silent and not sending.done():
                    raise ConnectionFailed(
                        f"{call.method} {replica.url}{call.path}{call.about}: no answer, and {_ALIVE.path} did not "
                        f"answer either within {self._timing.probe_timeout_s:g} s"
                    )
            return sending.result()
        except ConnectionFailed as error:
            self.eject(replica, error)
            raise
        except ServiceUnavailable as error:
            if error.status == 503:  # not ready, or draining
                self.eject(replica, error)
            if error.retry_after_s is not None:
                replica.rests_until = self._timing.clock() + error.retry_after_s
            raise
        finally:
            replica.outstanding -= call.num_sequences
            await cancel(sending)

    def eject(self, replica: Replica, why: PlauditError) -> None:
        """Take a replica out of use until it is ready."""
        if replica.ejected:
            return
        replica.ejected = True
        _log.info("ejected %s at %s: %s", replica.url, replica.address, why)
        self._spawn(self._readmit(replica))

    async def is_any_ready(self) -> PlauditError | None:
        """Ask all replicas for /readyz; None as soon as one says yes, else what the last of them said."""
        try:
            await self._look_up_first()
        except ConnectionFailed as error:
            return error
        probes = [asyncio.ensure_future(self._probe(replica, _READY)) for replica in self.replicas.all]
        failure: PlauditError | None = None
        try:
            for probe in asyncio.as_completed(probes):
                failure = await probe
                if failure is None:
                    break
        finally:
            for probe in probes:
                await cancel(probe)
        return failure

    async def close(self) -> None:
        """End all probes, and close the connections."""
        for task in list(self._tasks):
            await cancel(task)
        await self._transport.close()

    async def _send(self, replica: Replica, call: Call) -> Reply:
        where = f"{call.method} {replica.url}{call.path}{call.about}"
        headers = {**self._headers, **(call.headers or {})}
        if request_id := headers.get("X-Request-Id"):
            where += f" (request {request_id})"
        request = HttpRequest(call.method, replica.url + call.path, headers, call.body, call.max_answer_bytes)
        try:
            response = await self._transport.send(request, replica.address)
        except ConnectionFailed as error:
            message = f"{where}: {error}; check that the service runs there"
            raise ConnectionFailed(message, connected=error.connected) from error
        reply = Reply(where, response.status, response.headers, response.body, call.max_answer_bytes)
        check_status(reply)
        return reply

    async def _probe(self, replica: Replica, call: Call) -> PlauditError | None:
        """Ask a replica something short; None when it answered well enough."""
        timeout_s = self._timing.probe_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(replica, call)
        except RequestRejected:  # 404: a service that speaks only /score
            return None
        except PlauditError as error:
            return error
        except TimeoutError:
            return ConnectionFailed(f"{call.method} {replica.url}{call.path}: no answer within {timeout_s:g} s")
        return None

    async def _answers(self, replica: Replica, call: Call) -> bool:
        return await self._probe(replica, call) is None

    async def _readmit(self, replica: Replica) -> None:
        """Probe an ejected replica until it is ready, or its address is gone."""
        for probes_done in itertools.count():
            await self._transport.disconnect(replica.url, replica.address)  # a draining one waits for their end
            if await self._answers(replica, _READY):
                break
            await self._timing.sleep(probe_delay_s(probes_done, self._timing.random()))
            self._look_up_if_due()
            if replica not in self.replicas.all:
                return
        replica.ejected = False
        _log.info("readmitted %s at %s", replica.url, replica.address)
        self._announce_change()

    async def _look_up_first(self) -> None:
        """Look up the host names if that is due; wait for it only where nothing is known yet."""
        self._look_up_if_due()
        if not self.replicas.all and self._lookup is not None:
            await asyncio.shield(self._lookup)

    def _look_up_if_due(self) -> None:
        """Begin to look up the host names, unless that was done lately or is being done."""
        now = self._timing.clock()
        if self._looked_up_at is not None and now - self._looked_up_at < self._timing.resolve_every_s:
            return
        if self._lookup is None or self._lookup.done():
            self._lookup = self._spawn(self._look_up())

    async def _look_up(self) -> None:
        found = await asyncio.gather(
            *(self._transport.resolve(url) for url in self.replicas.urls), return_exceptions=True
        )
        failures = []
        for url, addresses in zip(self.replicas.urls, found, strict=True):
            if isinstance(addresses, BaseException):
                failures.append(addresses)  # where it led before is kept
            else:
                self.replicas.set_addresses(url, addresses)
        if not self.replicas.all:
            raise failures[0]
        self._looked_up_at = self._timing.clock()
        self._announce_change()

    def _announce_change(self) -> None:
        """Let everybody who waits for a replica choose again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_end)
        return task

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a failed lookup is raised where it is awaited; else the next one may succeed


async def cancel(task: "asyncio.Future[Any]") -> None:
    """End a task and wait until it has cleaned up; one that has failed by itself has nobody to tell any more."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # asked for, so that the event loop does not complain that nobody did
