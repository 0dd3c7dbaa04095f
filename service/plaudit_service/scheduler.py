"""The queue of one model: admits, waits, forms batches, hands them to the engine's thread, delivers.

Policy (which sequences make a batch) is in `batching`; computation is in `model`. Knows nothing of HTTP.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from plaudit_service.batching import choose_batch
from plaudit_service.engines import padded_tokens
from plaudit_service.errors import QueueFull, TooLarge
from plaudit_service.metrics import Metrics
from plaudit_service.model import Failure, Model, Outcome
from plaudit_service.settings import Settings
from plaudit_service.tokenization import TokenizedText
from plaudit_service.wire import Status

_EXPIRED = Failure(Status.EXPIRED, "the deadline passed before the sequence was computed")


@dataclass(eq=False)
class Ticket:
    """The sequences of one request, on their way. Times are of the scheduler's clock, in seconds."""

    arrival: int
    deadline: float
    arrived: float
    outcomes: list[Outcome]
    num_open: int
    done: asyncio.Future[None]
    started: float | None = None
    finished: float = 0.0

    @property
    def queue_s(self) -> float:
        """Time until the first of its batches started."""
        return (self.finished if self.started is None else self.started) - self.arrived

    @property
    def infer_s(self) -> float:
        """Time from the start of its first batch to the end of its last."""
        return 0.0 if self.started is None else self.finished - self.started


@dataclass(frozen=True, eq=False)
class _Entry:
    ticket: Ticket
    place: int
    text: TokenizedText

    @property
    def num_tokens(self) -> int:
        return len(self.text.token_ids)


@dataclass(eq=False)
class Scheduler:
    """Batches the sequences of all requests to one model. `run` must be running for anything to be computed.

    No timer: an idle engine takes what is there at once, and under load batches grow by themselves.
    """

    model: Model
    settings: Settings
    metrics: Metrics
    engine_thread: Executor
    clock: Callable[[], float] = time.monotonic
    _queue: list[_Entry] = field(default_factory=list)
    _queued_tokens: int = 0
    _arrivals: int = 0
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def compute(
        self, texts: Sequence[TokenizedText], *, deadline: float = float("inf"), bounded: bool = True
    ) -> Ticket:
        """Wait for the outcomes of all sequences of a request, which is admitted whole or not at all.

        Args:
            texts: The sequences.
            deadline: Time of the scheduler's clock after which nobody wants them.
            bounded: False for the start-up check, which no limit may refuse.

        Raises:
            QueueFull: there is no room now.
            TooLarge: there could never be room.
        """
        num_tokens = sum(len(text.token_ids) for text in texts)
        if bounded:
            self._admit(len(texts), num_tokens)
        ticket = Ticket(
            arrival=self._arrivals,
            deadline=deadline,
            arrived=self.clock(),
            outcomes=[_EXPIRED] * len(texts),
            num_open=len(texts),
            done=asyncio.get_running_loop().create_future(),
        )
        self._arrivals += 1
        self._set_queue([*self._queue, *(_Entry(ticket, place, text) for place, text in enumerate(texts))])
        if texts:
            self._wake.set()
            await ticket.done
        ticket.finished = self.clock()
        return ticket

    async def run(self) -> None:
        """Take batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            batch = self._take()
            if not batch:
                self._wake.clear()
                continue
            started = self.clock()
            for entry in batch:
                self.metrics.queue_seconds.observe(started - entry.ticket.arrived)
                entry.ticket.started = entry.ticket.started or started
            self.metrics.running_sequences.inc(len(batch))
            texts = [entry.text for entry in batch]
            outcomes = await loop.run_in_executor(self.engine_thread, self.model.compute, texts)
            self.metrics.running_sequences.dec(len(batch))
            self._observe(batch, self.clock() - started)
            for entry, outcome in zip(batch, outcomes, strict=True):
                self._deliver(entry, outcome)

    def _admit(self, num_sequences: int, num_tokens: int) -> None:
        limits = (
            ("sequences", num_sequences, len(self._queue), self.settings.max_queued_sequences),
            ("tokens", num_tokens, self._queued_tokens, self.settings.max_queued_tokens),
        )
        for what, wanted, queued, limit in limits:
            if wanted > limit:
                raise TooLarge(f"the request has {wanted} {what}, the whole queue holds {limit}; send smaller requests")
            if queued + wanted > limit:
                raise QueueFull(f"{queued} {what} wait, the request has {wanted} more, limit {limit}; try again later")

    def _take(self) -> list[_Entry]:
        """Remove the next batch from the queue, and what nobody waits for any more."""
        now = self.clock()
        alive = []
        for entry in self._queue:
            if entry.ticket.done.cancelled():
                self.metrics.cancelled.inc()
            elif entry.ticket.deadline <= now:
                self.metrics.expired.inc()
                self._deliver(entry, _EXPIRED)
            else:
                alive.append(entry)
        waiting = [(entry.ticket.arrival, entry.num_tokens) for entry in alive]
        chosen = choose_batch(waiting, max_padded_tokens=self.settings.max_batch_tokens)
        taken = set(chosen)
        self._set_queue([entry for at, entry in enumerate(alive) if at not in taken])
        return [alive[at] for at in chosen]

    def _deliver(self, entry: _Entry, outcome: Outcome) -> None:
        ticket = entry.ticket
        ticket.outcomes[entry.place] = outcome
        ticket.num_open -= 1
        if ticket.num_open == 0 and not ticket.done.done():
            ticket.done.set_result(None)

    def _observe(self, batch: Sequence[_Entry], seconds: float) -> None:
        lengths = [entry.num_tokens for entry in batch]
        padded = padded_tokens(lengths)
        self.metrics.infer_seconds.observe(seconds)
        self.metrics.batch_sequences.observe(len(batch))
        self.metrics.batch_tokens.observe(padded)
        self.metrics.computed_tokens.inc(sum(lengths))
        self.metrics.padding_tokens.inc(padded - sum(lengths))

    def _set_queue(self, queue: list[_Entry]) -> None:
        """Replace the queue; the gauges add up the queues of all models."""
        num_tokens = sum(entry.num_tokens for entry in queue)
        self.metrics.queued_sequences.inc(len(queue) - len(self._queue))
        self.metrics.queued_tokens.inc(num_tokens - self._queued_tokens)
        self._queue, self._queued_tokens = queue, num_tokens
