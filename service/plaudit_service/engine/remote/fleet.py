"""The servers of one model as a device: lists of sequences, several in flight, each to one that has passed its check.

All of it runs in the event loop. Who checks a server, and when, is not known here.
"""

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from plaudit_service.engine.device import Batch, Call, Computed
from plaudit_service.engine.model import Failure, Outcome, RewardModel, outcome_of
from plaudit_service.engine.remote.pooling import Served
from plaudit_service.engine.remote.vllm import Lost, Vllm
from plaudit_service.errors import Unavailable
from plaudit_service.results import Status
from plaudit_service.text.tokenization import TokenizedText

_T = TypeVar("_T")

_REFUSED = Failure(Status.FAILED, "the engine refused the sequence")


class Member:
    """One server, and whether it may be asked. As a device it computes whatever state it is in: so it is checked.

    Args:
        server: The server.
        model: Whose heads it gives.
        num_calls: Lists in flight, at most.
        clock: Seconds that only grow.

    Attributes:
        served: What it has said of itself; None: nothing yet.
        not_ready: Why it must not be asked now; None: it may.
        max_abs_diff: The largest distance from a reference when it was checked; None: it was not.
        num_in_flight: Lists of the fleet's that it computes.
    """

    def __init__(self, server: Vllm, model: RewardModel, num_calls: int, clock: Callable[[], float]) -> None:
        self.server = server
        self.num_calls = num_calls
        self.served: Served | None = None
        self.not_ready: str | None = "it was not checked yet"
        self.max_abs_diff: float | None = None
        self._model = model
        self._clock = clock
        self.num_in_flight = 0
        self._loss: asyncio.Future[Lost] | None = None
        self._num_connections = 0  # how many were made to the process that was checked
        self._calls = _Calls()

    @property
    def url(self) -> str:
        """Its address."""
        return self.server.url

    @property
    def num_free(self) -> int:
        """How many more lists it takes."""
        return max(0, self.num_calls - self.num_in_flight)

    async def connect(self) -> None:
        """Ask what it serves; from now on a loss is one of this server.

        Raises:
            Lost: it does not answer, or serves texts that are shorter than the model's longest.
        """
        self._loss = asyncio.get_running_loop().create_future()
        self.served = await self.server.describe()
        longest, limit = self._model.bundle.scoring.max_tokens, self.served.max_tokens
        if limit is not None and limit < longest:
            raise Lost("wrong", f"its --max-model-len is {limit}, and the bundle's max_tokens {longest}; raise it")

    def admit(self) -> None:
        """It has passed its check."""
        self.not_ready = None

    def lose(self, loss: Lost) -> None:
        """Ask it no more; what is in flight there is given up."""
        self.not_ready = str(loss)
        if self._loss is not None and not self._loss.done():
            self._loss.set_result(loss)

    async def wait_until_lost(self, timeout_s: float) -> None:
        """Sleep.

        Raises:
            Lost: a call has lost it meanwhile, or before.
        """
        assert self._loss is not None
        await asyncio.wait([self._loss], timeout=timeout_s)
        if self._loss.done():
            raise self._loss.result()

    def start(self, batch: Batch, num_prefix_tokens: int = 0) -> Call:
        """Compute a batch on this server, whatever else it does."""
        call = Call()
        call.set_running_or_notify_cancel()
        self._calls.begin(call, list(batch()), self._compute_or_lose)
        return call

    def start_continued(self, text: TokenizedText, num_prefix_tokens: int) -> Call | None:
        """What is shared is the server's to choose."""
        return None

    def abandon(self, call: Call) -> None:
        """Cut the request, which aborts it there."""
        self._calls.abandon(call)

    async def compute(self, texts: Sequence[TokenizedText]) -> Computed:
        """Compute sequences.

        Raises:
            Lost: the server was lost meanwhile.
        """
        started = self._clock()
        outcomes = await self._outcomes(texts)
        return Computed(outcomes, is_alone=False, started=started, finished=self._clock())

    async def close(self) -> None:
        """Give up what is in flight, and close the connections."""
        await self._calls.close()
        await self.server.close()

    async def _compute_or_lose(self, texts: Sequence[TokenizedText]) -> Computed:
        try:
            return await self.compute(texts)
        except Lost as loss:
            self.lose(loss)
            raise Unavailable(str(loss)) from loss

    async def _outcomes(self, texts: Sequence[TokenizedText]) -> list[Outcome]:
        """Of each sequence. One that is refused is found by halves; one without a finite value is asked for alone."""
        if not texts:
            return []
        heads = await self._heads(texts)
        if heads is None and len(texts) == 1:
            return [_REFUSED]
        if heads is None:
            half = len(texts) // 2
            return [*await self._outcomes(texts[:half]), *await self._outcomes(texts[half:])]
        outcomes: list[Outcome] = [outcome_of(row) for row in heads]
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome, Failure):
                outcomes[place] = await self._outcome_alone(texts[place])
        return outcomes

    async def _outcome_alone(self, text: TokenizedText) -> Outcome:
        """Twice where need be: vLLM gives the NaN of a sequence to the next ones, and keeps it with their prefixes."""
        for _ in range(2):
            heads = await self._heads([text], salt=secrets.token_hex(8))
            outcome = _REFUSED if heads is None else outcome_of(heads[0])
            if not isinstance(outcome, Failure):
                break
        return outcome

    async def _heads(self, texts: Sequence[TokenizedText], salt: str | None = None) -> npt.NDArray[np.float64] | None:
        """Raw values of sequences, from the process that was checked; None: it refuses the list."""
        assert self.served is not None
        num_heads = len(self._model.bundle.scoring.heads)
        asked = self.server.heads(self.served.model, [text.token_ids for text in texts], num_heads, salt)
        heads = await self._unless_lost(asked)
        if (count := self.server.num_connections) != self._num_connections:
            await self._unless_lost(self.require_same_process())
            self._num_connections = count
        return None if heads is None else heads.astype(np.float64)

    async def require_same_process(self) -> None:
        """The process that was checked is the one that answers, over whatever connections there are until now.

        Raises:
            Lost: it was started anew, or does not answer.
        """
        assert self.served is not None
        if await self.server.started() != self.served.started:
            raise Lost("restarted", "its process was started anew")

    async def _unless_lost(self, call: Coroutine[Any, Any, _T]) -> _T:
        """What a call returns.

        Raises:
            Lost: as the call does; or it was lost meanwhile by another.
        """
        loss = self._loss
        assert loss is not None
        task = asyncio.ensure_future(call)
        try:
            either: set[asyncio.Future[Any]] = {task, loss}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise loss.result()
            return await task
        finally:
            task.cancel()


class _Slot:
    """A place among the lists that one server computes."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self._is_taken = True
        member.num_in_flight += 1

    def free(self) -> None:
        """Give it back, once."""
        if self._is_taken:
            self.member.num_in_flight -= 1
        self._is_taken = False

    def move(self, member: Member) -> None:
        """To another server."""
        self.free()
        self.member, self._is_taken = member, True
        member.num_in_flight += 1


class Fleet:
    """Servers of one model, of which those that have passed their check are asked, the least busy first.

    Args:
        model: The model.
        servers: At least one.
        calls_per_server: Lists in flight to one.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        model: RewardModel,
        servers: Sequence[Vllm],
        calls_per_server: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.members = [Member(server, model, calls_per_server, clock) for server in servers]
        self.num_calls = calls_per_server * len(servers)
        self._pending: deque[tuple[Batch, Call]] = deque()
        self._calls = _Calls()

    @property
    def not_ready(self) -> str | None:
        """Why no server can be asked, without their addresses, which are no business of clients; None: one can."""
        if any(member.not_ready is None for member in self.members):
            return None
        count = len(self.members)
        return "; ".join(f"engine {place} of {count}: {each.not_ready}" for place, each in enumerate(self.members, 1))

    @property
    def num_free(self) -> int:
        """How many more lists would be sent at once."""
        free = sum(member.num_free for member in self.members if member.not_ready is None)
        return max(0, free - len(self._pending))

    def start(self, batch: Batch, num_prefix_tokens: int = 0) -> Call:
        """Send a list as soon as a server has room for it."""
        call = Call()
        self._pending.append((batch, call))
        self.send()
        return call

    def start_continued(self, text: TokenizedText, num_prefix_tokens: int) -> Call | None:
        """What is shared is the servers' to choose."""
        return None

    def abandon(self, call: Call) -> None:
        """Cut the request, which aborts it there."""
        self._calls.abandon(call)

    def send(self) -> None:
        """Send what there is room for; refuse it where there is no server."""
        while self._pending:
            member = self._least_busy()
            if member is not None and not member.num_free:
                return
            batch, call = self._pending.popleft()
            if not call.set_running_or_notify_cancel():
                continue
            if member is None:
                call.set_exception(self._unavailable())
                continue
            slot = _Slot(member)
            self._calls.begin(call, list(batch()), partial(self._compute, slot), partial(self._end, slot))

    def info(self) -> list[dict[str, Any]]:
        """What is known of each server, as JSON."""
        return [self._member_info(member) for member in self.members]

    async def close(self) -> None:
        """Give up what is in flight, and close the connections."""
        for member in self.members:
            member.not_ready = "the service is shutting down"
        await self._calls.close()
        for member in self.members:
            await member.close()

    def _least_busy(self, without: Collection[Member] = ()) -> Member | None:
        ready = [member for member in self.members if member.not_ready is None and member not in without]
        return max(ready, key=lambda member: member.num_free, default=None)

    async def _compute(self, slot: _Slot, texts: Sequence[TokenizedText]) -> Computed:
        """On one server after the other, until one gives an answer."""
        tried: list[Member] = []
        try:
            while True:
                try:
                    return await slot.member.compute(texts)
                except Lost as loss:
                    slot.member.lose(loss)
                tried.append(slot.member)
                other = self._least_busy(tried)
                if other is None:
                    raise self._unavailable()
                slot.move(other)
        finally:
            slot.free()  # before the queue hears of it, and fills it again

    def _end(self, slot: _Slot) -> None:
        slot.free()
        self.send()

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"{self.not_ready or 'every engine failed on this request'}; try again later")

    def _member_info(self, member: Member) -> dict[str, Any]:
        served, difference = member.served, member.max_abs_diff
        return {
            "url": member.url,
            "ready": member.not_ready is None,
            "detail": member.not_ready,
            "model": None if served is None else served.model,
            "version": None if served is None else served.version,
            "max_abs_diff": difference if difference is not None and math.isfinite(difference) else None,
        }


_Compute = Callable[[Sequence[TokenizedText]], Coroutine[Any, Any, Computed]]


class _Calls:
    """Batches that are computed by tasks of the event loop."""

    def __init__(self) -> None:
        self._tasks: dict[Call, asyncio.Task[None]] = {}

    def begin(
        self, call: Call, texts: Sequence[TokenizedText], compute: _Compute, ended: Callable[[], None] = lambda: None
    ) -> None:
        """Compute sequences for a call that was given out; `ended` is called when it is done."""
        task = self._tasks[call] = asyncio.get_running_loop().create_task(_settle(call, texts, compute))

        def end(_: object) -> None:
            del self._tasks[call]
            if not call.done():  # the task was cancelled before its first step
                call.set_exception(_abandoned())
            ended()

        task.add_done_callback(end)

    def abandon(self, call: Call) -> None:
        """End the task of a call."""
        if call in self._tasks:
            self._tasks[call].cancel()

    async def close(self) -> None:
        """End all tasks."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _settle(call: Call, texts: Sequence[TokenizedText], compute: _Compute) -> None:
    """Give a call what is computed for it, or the error."""
    try:
        computed = await compute(texts)
    except asyncio.CancelledError:
        call.set_exception(_abandoned())
        raise
    except Exception as error:  # noqa: BLE001  it belongs to the one who waits for the call
        call.set_exception(error)
    else:
        call.set_result(computed)


def _abandoned() -> Unavailable:
    return Unavailable("nobody waits for it any more")
