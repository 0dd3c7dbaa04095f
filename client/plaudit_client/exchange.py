"""Sends one request and repeats it until it is answered, refused, or out of time.

Knows nothing of items and scores. What is worth another attempt is decided in `protocol` and `retry`; which replica
gets it, and whether it is one, in `fleet`.
"""

import asyncio
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from plaudit_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    FingerprintMismatch,
    PlauditError,
    ServiceUnavailable,
)
from plaudit_client.fleet import Call, Fleet, cancel
from plaudit_client.protocol import Reply
from plaudit_client.replicas import Replica, Replicas
from plaudit_client.retry import HedgeBudget, RetryBudget, Timing, next_delay_s
from plaudit_client.transport import Network, Transport

_POLL_INTERVAL_S = 0.5
_HEDGE_POLL_S = 0.02


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
    """Requests to all replicas of a service.

    Args:
        urls: Base URLs.
        headers: Of every request.
        transport: Instead of the network, for tests.
        max_concurrency: Requests in flight at once.
        max_retries: Of one request; None: until the deadline.
        hedge: Whether a request that takes long is sent to an idle other replica too.
        timing: Clock, sleep and chance.
    """

    def __init__(
        self,
        urls: Sequence[str],
        headers: Mapping[str, str],
        *,
        transport: Transport | None,
        max_concurrency: int,
        max_retries: int | None,
        hedge: bool,
        timing: Timing,
    ) -> None:
        self._max_retries = max_retries
        self._timing = timing
        self._slots = asyncio.Semaphore(max_concurrency)
        self._replicas = Replicas(urls)
        network = transport or Network(max_age_s=timing.max_connection_age_s, clock=timing.clock)
        self._fleet = Fleet(self._replicas, headers, transport=network, timing=timing)
        self._retries = RetryBudget()
        self._hedges = HedgeBudget() if hedge else None
        self._owner: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._closed = False

    @property
    def num_replicas(self) -> int:
        """How many are known now; 1 before any is."""
        return max(1, len(self._replicas.all))

    async def send(self, call: Call, deadline: Deadline) -> Reply:
        """Send a request, again if need be, until it is answered with status 200.

        Raises:
            ConnectionFailed: There was no answer, also not to the last attempt.
            ServiceUnavailable: The answer to the last attempt was that the service cannot answer now.
            RequestRejected: The service refused the request.
            DeadlineExceeded: The deadline passed.
            PlauditError: The client is closed, or belongs to another process or event loop.
        """
        self._check_owner()
        repetition = _Repetition(uuid.uuid4().hex)
        try:
            async with asyncio.timeout(deadline.remaining_s):
                while True:
                    try:
                        return await self._send_once(call, deadline, repetition)
                    except (ConnectionFailed, ServiceUnavailable) as error:
                        await self._wait_before_retry(error, deadline, repetition)
                    except FingerprintMismatch as error:
                        self._refuse_replica(error, repetition)
        except TimeoutError as error:
            raise _exceeded(
                f"{call.method} {call.path}{call.about}: no answer", deadline, repetition.failure
            ) from error

    async def wait_until_ready(self, deadline: Deadline) -> None:
        """Ask all replicas for /readyz until one says yes.

        Raises:
            DeadlineExceeded: None did.
        """
        self._check_owner()
        failure: PlauditError | None = None
        while deadline.remaining_s > 0:
            try:
                async with asyncio.timeout(deadline.remaining_s):
                    failure = await self._fleet.is_any_ready()
            except TimeoutError:
                break
            if failure is None:
                return
            await self._timing.sleep(min(_POLL_INTERVAL_S, deadline.remaining_s))
        raise _exceeded("GET /readyz: not ready", deadline, failure)

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        await self._fleet.close()

    def _check_owner(self) -> None:
        """Connections and tasks are of use only in the process and event loop that made them."""
        if self._closed:
            raise PlauditError("client: already closed; create a new client")
        here = (os.getpid(), asyncio.get_running_loop())
        self._owner = self._owner or here
        if self._owner[0] != here[0]:
            raise PlauditError("client: created before this process was forked; create a new client in each process")
        if self._owner[1] is not here[1]:
            raise PlauditError("client: belongs to another event loop; create one client for each event loop")

    async def _send_once(self, call: Call, deadline: Deadline, repetition: "_Repetition") -> Reply:
        async with self._slots:
            replica = await self._fleet.choose(exclude=repetition.refused, avoid=repetition.last)
            repetition.last = replica
            headers = {"X-Request-Id": repetition.request_id, "X-Request-Timeout-S": f"{deadline.remaining_s:.3f}"}
            if call.body is not None:
                headers["Content-Type"] = "application/json"
            reply = await self._attempt(replica, replace(call, headers=headers), repetition)
        self._retries.refund()
        return reply

    async def _attempt(self, replica: Replica, call: Call, repetition: "_Repetition") -> Reply:
        """One attempt, or with hedging the better one of two."""
        if self._hedges is None:
            return await self._fleet.attempt(replica, call)
        self._hedges.add_request()
        began_at = self._timing.clock()
        attempts = [asyncio.ensure_future(self._fleet.attempt(replica, call))]
        try:
            while len(attempts) == 1:
                due_s = self._hedges.delay_s  # may be known only after others were answered
                waited_s = self._timing.clock() - began_at
                left_s = 0.0 if due_s is None else due_s - waited_s
                if (await asyncio.wait(attempts, timeout=max(left_s, _HEDGE_POLL_S)))[0]:
                    break
                if due_s is not None and (other := self._take_hedge(repetition)):
                    attempts.append(asyncio.ensure_future(self._fleet.attempt(other, call)))
            reply = await _first_answer(attempts)
            self._hedges.add_time(self._timing.clock() - began_at)
            return reply
        finally:
            for attempt in attempts:
                await cancel(attempt)

    def _take_hedge(self, repetition: "_Repetition") -> Replica | None:
        """An idle other replica, where there is one and the budget allows it."""
        assert self._hedges is not None
        assert repetition.last is not None
        exclude = {repetition.last, *repetition.refused}
        other = self._replicas.pick_idle(self._timing.clock(), exclude=exclude)
        return other if other is not None and self._hedges.take() else None

    async def _wait_before_retry(
        self, error: ConnectionFailed | ServiceUnavailable, deadline: Deadline, repetition: "_Repetition"
    ) -> None:
        """Wait as long as is right after a failure; raises it where there is to be no other attempt."""
        repetition.failure = error
        error.attempts = repetition.attempts = repetition.attempts + 1
        has_other = repetition.last is not None and self._replicas.has_other(repetition.last, repetition.refused)
        retry_after_s = getattr(error, "retry_after_s", None)
        delay_s = next_delay_s(
            repetition.attempts - 1,
            max_retries=self._max_retries,
            retry_after_s=None if has_other else retry_after_s,  # one replica asks for itself, not for the others
            remaining_s=deadline.remaining_s,
            chance=self._timing.random(),
        )
        if delay_s is None:
            raise error
        if not self._retries.take(error):
            error.is_budget_spent = True
            raise error
        # Each of the others may be tried at once, but a request that breaks connections is not sent round and round.
        at_once = has_other and isinstance(error, ConnectionFailed) and repetition.attempts < self.num_replicas
        if not at_once:
            await self._timing.sleep(delay_s)

    def _refuse_replica(self, error: FingerprintMismatch, repetition: "_Repetition") -> None:
        """Go on without a replica that has another reward model; raises where there is no other."""
        replica = repetition.last
        assert replica is not None
        replica.rests_until = self._timing.clock() + self._timing.mismatch_rest_s
        repetition.refused.add(replica)
        repetition.failure = error
        if repetition.refused.issuperset(self._replicas.all):
            raise error


class _Repetition:
    """What is known of a request while it is repeated."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.attempts = 0
        self.last: Replica | None = None
        self.refused: set[Replica] = set()
        self.failure: PlauditError | None = None


async def _first_answer(attempts: list["asyncio.Task[Reply]"]) -> Reply:
    """The first answer that comes; where none does, the failure of the first attempt."""
    pending = set(attempts)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for attempt in done:
            if attempt.exception() is None:
                return attempt.result()
    return attempts[0].result()


def _exceeded(what: str, deadline: Deadline, failure: PlauditError | None) -> DeadlineExceeded:
    last = "" if failure is None else f"; last failure: {failure}"
    return DeadlineExceeded(f"{what} within {deadline.timeout_s:g} s{last}; allow more time with timeout_s")
