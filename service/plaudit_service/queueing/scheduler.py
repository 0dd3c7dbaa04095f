"""The queue of one model: admits, hands batches to what computes them, delivers.

Policy (which sequences make a batch) is in `batching`; computation is in `engine/`. Knows nothing of HTTP.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from plaudit_service.engine.device import Call, Computed, Device
from plaudit_service.engine.engines import padded_tokens
from plaudit_service.engine.model import Failure, Outcome, RewardModel
from plaudit_service.errors import QueueFull, TooLarge, Unavailable
from plaudit_service.metrics import Metrics
from plaudit_service.queueing.batching import Backlog, Batch
from plaudit_service.queueing.fairness import Clients, room
from plaudit_service.queueing.pace import Pace
from plaudit_service.queueing.score_cache import ScoreCache
from plaudit_service.results import Status
from plaudit_service.settings import Settings
from plaudit_service.text.token_ids import Ids, token_key
from plaudit_service.text.tokenization import TokenizedText

# Bounds of Retry-After, in seconds; clients obey up to a minute.
_MIN_RETRY_AFTER_S, _MAX_RETRY_AFTER_S = 1, 60

_EXPIRED = Failure(Status.EXPIRED, "the deadline passed before the sequence was computed")


@dataclass(eq=False)
class Ticket:
    """The sequences of one request, on their way. Times are of the scheduler's clock, in seconds.

    Await `done`; who cancels it takes what is not computed yet out of the queue. Unavailable: the engine hangs.
    `outcomes` and `jobs` go by the sequences' indexes in the request.
    """

    client: str
    arrival: int
    deadline: float
    arrived: float
    outcomes: dict[int, Outcome]
    done: asyncio.Future[None]
    jobs: dict[int, "_Job"] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
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


@dataclass(eq=False)
class _Job:
    """One sequence to compute, and all who wait for it: (ticket, index of the sequence in its request).

    It is on the account of `client`, whose turn for it came first.
    """

    key: "_Key"
    text: TokenizedText
    client: str
    turn: int
    arrival: int
    waiters: set[tuple[Ticket, int]] = field(default_factory=set)

    @property
    def token_ids(self) -> Ids:
        return self.text.token_ids


# What a score is a function of, the bytes of token ids and of type ids; and whether values along them are asked for.
_Key = tuple[tuple[bytes, bytes], bool]


@dataclass(frozen=True, eq=False)
class _HandedOver:
    """A batch that computes, or lies ready; `wanted` are those of its sequences that somebody wanted as it began."""

    batch: Batch[_Job]
    wanted: list[_Job]
    call: Call


class Scheduler:
    """Batches the sequences of all requests to one model.

    No timer: an idle engine takes what is there at once, and under load batches grow by themselves. While the engine
    has no call free, the next batch is handed over as soon as it is full; until then it stays open to what arrives.
    Identical sequences are computed once. Clients that have names share queue and turns; a batch that lies ready is
    taken back where another client's turn comes first.

    Args:
        model: Whose sequences they are.
        settings: Limits of queue and batches.
        metrics: Where it counts.
        device: What computes.
        clock: Seconds that only grow; deadlines are on it.
    """

    def __init__(
        self,
        model: RewardModel,
        settings: Settings,
        metrics: Metrics,
        device: Device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.device = device
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._backlog: Backlog[_Job] = Backlog(model.engine.costs, model.longest_kept)
        self._jobs: dict[_Key, _Job] = {}  # what waits or is computed
        self._clients = Clients()  # whose they are
        self._cache = ScoreCache(settings.score_cache_size)
        self._pace = Pace()
        self._last_finished = -math.inf
        self._arrivals = 0
        self._handed_over: list[_HandedOver] = []
        # Of each client that waits for room: a burst of one keeps no other from the room that is left.
        self._turns_to_wait: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._queue_changed = asyncio.Event()
        self._failure: Unavailable | None = None
        self._shown = (0, 0)  # sequences and tokens that this queue has in the gauges

    def require_room(
        self, num_sequences: int, num_tokens: int = 0, *, deadline: float = math.inf, client: str = ""
    ) -> None:
        """Refuse what `admit` would not admit now, before any work is done for it.

        What goes first may take longer than the deadline leaves, by the pace of the last batches. Such a request
        would only keep others out, so the queue is full for it. An empty queue refuses nobody, whatever the pace was.

        Args:
            num_sequences: Sequences of the request.
            num_tokens: Tokens of all of them; 0 where they are not known yet.
            deadline: Time of the scheduler's clock after which nobody wants them.
            client: Whose share of the queue they take; "": of one who shares with nobody.

        Raises:
            QueueFull: there is no room now, or the deadline would pass first.
            TooLarge: there could never be room.
            Unavailable: there is no engine that could compute it.
        """
        if self._failure is not None:
            raise Unavailable(self._failure.detail)
        waiting, waiting_tokens = len(self._backlog), self._backlog.num_tokens
        own, own_tokens = self._clients.in_hand(client)
        limits = (
            ("sequences", num_sequences, waiting, own, self._settings.max_queued_sequences),
            ("tokens", num_tokens, waiting_tokens, own_tokens, self._settings.max_queued_tokens),
        )
        for what, wanted, queued, queued_own, limit in limits:
            most = room(limit, 0, 0) if client else limit
            left = room(limit, queued, queued_own) if client else limit - queued
            if wanted > most:
                whole = f"one client's share of the queue is {most}" if client else f"the whole queue holds {limit}"
                raise TooLarge(f"the request has {wanted} {what}, {whole}; send smaller requests")
            if wanted > left:
                share = f" and {queued_own} of this client wait or run" if client else ""
                raise self._full(
                    f"{queued} {what} wait{share}, the request has {wanted} more, limit {limit}; try again later"
                )
        before = self._clients.num_tokens_before(client, num_tokens) if client else waiting_tokens
        wait_s, left_s = self._pace.seconds_for(before), deadline - self._clock()
        if wait_s > left_s > 0:
            raise self._full(
                f"{waiting} sequences wait, which takes about {wait_s:.1f} s, and the request's deadline passes in "
                f"{left_s:.1f} s; try again later or give it more time"
            )

    def _full(self, detail: str) -> QueueFull:
        """Half of what waits should be worked off before the client comes back."""
        half_s = math.ceil(self._pace.seconds_for(self._backlog.num_tokens) / 2)
        return QueueFull(detail, retry_after_s=min(_MAX_RETRY_AFTER_S, max(_MIN_RETRY_AFTER_S, half_s)))

    async def wait_for_room(
        self, texts: Sequence[TokenizedText], *, deadline: float = math.inf, client: str = ""
    ) -> None:
        """Wait, in the client's order of arrival, until `admit` would admit these sequences; call it at once then.

        A deadline that passes meanwhile ends nothing: what is late expires once it is admitted.

        Raises:
            TooLarge: there could never be room.
            Unavailable: the engine hangs.
        """
        num_tokens = _count_tokens(texts)
        turn = self._turns_to_wait.setdefault(client, asyncio.Lock())
        async with turn:
            while True:
                try:
                    self.require_room(len(texts), num_tokens, deadline=deadline, client=client)
                except QueueFull:
                    self._queue_changed.clear()
                    await self._queue_changed.wait()
                else:
                    return

    def recover(self) -> None:
        """Admit again, after `fail`."""
        self._failure = None
        self._queue_changed.set()

    def forget(self) -> None:
        """Answer with no score that is known: what computed it has turned out to be wrong."""
        self._cache.clear()

    def fail(self, error: Unavailable) -> None:
        """Answer everything that waits or is computed with an error, and whatever may come."""
        self._failure = error
        self._queue_changed.set()
        for ticket in {ticket for job in self._jobs.values() for ticket, _ in job.waiters}:
            self._release(ticket)
            if not ticket.done.done():
                ticket.done.set_exception(error)

    def submit(
        self,
        texts: Sequence[TokenizedText],
        *,
        deadline: float = math.inf,
        client: str = "",
        may_be_known: bool = True,
    ) -> Ticket:
        """Queue sequences, whether there is room or not; requests come through `admit`.

        Args:
            texts: The sequences.
            deadline: Time of the scheduler's clock after which nobody wants them.
            client: Whose turn they take.
            may_be_known: Whether the cache may answer.
        """
        loop = asyncio.get_running_loop()
        now, done = self._clock(), loop.create_future()
        ticket = Ticket(client, self._arrivals, deadline, now, {text.index: _EXPIRED for text in texts}, done)
        assert len(ticket.outcomes) == len(texts), "two sequences of a request have one index"
        self._arrivals += 1
        for text in self._order(texts):
            self._enqueue(ticket, text, may_be_known=may_be_known)
        ticket.done.add_done_callback(lambda _: self._leave(ticket))
        if not ticket.jobs:
            self._end(ticket)
        elif deadline < math.inf:
            ticket.timer = loop.call_later(deadline - ticket.arrived, self._expire, ticket)
        self._take_back()
        self._hand_over()
        return ticket

    def _order(self, texts: Sequence[TokenizedText]) -> list[TokenizedText]:
        """In the order of their turns: the longest first; in lists, what begins alike one behind the other."""
        if self.model.engine.costs.pads:
            return sorted(texts, key=lambda text: -len(text.token_ids))
        return sorted(texts, key=lambda text: token_key(text.token_ids))

    def _leave(self, ticket: Ticket) -> None:
        """The wait has ended; where it was cancelled, sequences are left."""
        if ticket.timer is not None:
            ticket.timer.cancel()
        if ticket.jobs:
            self._metrics.cancelled.inc(len(ticket.jobs))
            self._release(ticket)

    def _enqueue(self, ticket: Ticket, text: TokenizedText, *, may_be_known: bool) -> None:
        """Wait for the computation of a sequence, which may be on its way for someone else, or known already."""
        content = text.token_ids.tobytes(), b"" if text.type_ids is None else text.type_ids.tobytes()
        along = text.places is not None
        key = content, along
        if may_be_known and not along and (known := self._cache.get(content)) is not None:
            self._metrics.score_cache_hits.inc()
            ticket.outcomes[text.index] = known
            return
        job = self._jobs.get(key)
        if job is None and not along:  # who asks for less may wait for more
            job = self._jobs.get((content, True))
        turn, num_tokens = self._clients.next_turn(ticket.client), len(text.token_ids)
        if job is None:
            job = self._jobs[key] = _Job(key, text, ticket.client, turn, ticket.arrival)
            self._clients.add(job.client, turn, num_tokens)
            self._backlog.add(job)
        elif turn < job.turn and job in self._backlog:  # it waits for another client, whose turn comes later
            self._backlog.discard(job)
            self._clients.remove(job.client, num_tokens)
            job.client, job.turn = ticket.client, turn
            self._clients.add(job.client, turn, num_tokens)
            self._backlog.add(job)
        job.waiters.add((ticket, text.index))
        ticket.jobs[text.index] = job

    def _release(self, ticket: Ticket) -> None:
        """Wait for nothing more; a sequence that nobody waits for is dropped."""
        for index, job in ticket.jobs.items():
            job.waiters.discard((ticket, index))
            if not job.waiters:
                self._drop(job)
        ticket.jobs.clear()
        for handed_over in self._handed_over:
            if not any(job.waiters for job in handed_over.batch.sequences):
                self.device.abandon(handed_over.call)
        self._show_queue()

    def _drop(self, job: _Job) -> None:
        """Out of the queue, if it is still there; nobody can join it any more."""
        self._backlog.discard(job)
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]
            self._clients.remove(job.client, len(job.token_ids))

    def _expire(self, ticket: Ticket) -> None:
        """End the wait at the deadline; the outcome of what is not computed yet stays `expired`."""
        self._metrics.expired.inc(len(ticket.jobs))
        self._release(ticket)
        self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        ticket.finished = self._clock()
        if not ticket.done.done():
            ticket.done.set_result(None)

    def _hand_over(self) -> None:
        """Give the engine its next batches: what can begin at once, and one full batch more, which lies ready."""
        num_calls, costs = self.device.num_calls, self.model.engine.costs
        wanted = self._settings.max_batch_tokens or costs.batch_tokens // (num_calls if costs.pads else 1)
        max_tokens = min(wanted, self.model.max_batch_tokens)
        while len(self._handed_over) <= num_calls:
            is_full = self._backlog.num_tokens >= max_tokens or len(self._backlog) >= (costs.max_rows or math.inf)
            if self._handed_over and not is_full and not self.device.num_free:
                break
            batch = self._backlog.take(max_padded_tokens=int(max_tokens))
            if batch is None:
                break
            batch = self._without_expired(batch)
            if batch.sequences:
                self._start(batch)
        self._reach_turn()
        self._show_queue()

    def _take_back(self) -> None:
        """Put the batches back that have not begun, and before which another client's turn comes."""
        next_in_turn = self._backlog.next_in_turn()
        while self._handed_over and next_in_turn is not None:
            last = self._handed_over[-1]
            if not last.batch.yields_to(next_in_turn) or not last.call.cancel():
                break
            self._handed_over.pop()
            self._metrics.running_sequences.dec(len(last.batch.sequences))
            self._metrics.batches_taken_back.inc()
            for job in last.batch.sequences:
                if job.waiters:
                    self._backlog.add(job)

    def _reach_turn(self) -> None:
        """The earliest turn that is not over is where newcomers start."""
        turns = [handed_over.batch.turn for handed_over in self._handed_over]
        if (next_in_turn := self._backlog.next_in_turn()) is not None:
            turns.append(next_in_turn.turn)
        if turns:
            self._clients.reach(min(turns))

    def _without_expired(self, batch: Batch[_Job]) -> Batch[_Job]:
        """The part of a batch that somebody wants still; timers may be late where the event loop is busy."""
        now = self._clock()
        for job in batch.sequences:
            for ticket in {ticket for ticket, _ in job.waiters if ticket.deadline <= now}:
                self._expire(ticket)
        return Batch([job for job in batch.sequences if job.waiters], batch.num_prefix_tokens)

    def _start(self, batch: Batch[_Job]) -> None:
        loop, since = asyncio.get_running_loop(), self._clock()
        wanted: list[_Job] = []

        def texts() -> list[TokenizedText]:
            # Who waited may have left since the batch was handed over.
            wanted.extend(job for job in batch.sequences if job.waiters)
            return [job.text for job in wanted]

        self._metrics.running_sequences.inc(len(batch.sequences))
        handed_over = _HandedOver(batch, wanted, self.device.start(texts, batch.num_prefix_tokens))
        self._handed_over.append(handed_over)

        def finish(call: Call) -> None:
            if not call.cancelled():
                loop.call_soon_threadsafe(self._finish, handed_over, since)

        handed_over.call.add_done_callback(finish)

    def _finish(self, handed_over: _HandedOver, since: float) -> None:
        """In the event loop again: deliver, and keep the engine busy."""
        batch, call = handed_over.batch, handed_over.call
        self._handed_over.remove(handed_over)
        self._metrics.running_sequences.dec(len(batch.sequences))
        if (error := call.exception()) is not None:
            self._refuse(batch, error)
            return
        computed = call.result()
        # Other models' batches, which the thread takes in turn, are part of what this queue waits for.
        began = max(since, self._last_finished)
        self._pace.observe(sum(len(job.token_ids) for job in batch.sequences), computed.finished - began)
        self._last_finished = computed.finished
        self._hand_over()
        self._observe(batch, computed)
        outcomes = dict(zip(handed_over.wanted, computed.outcomes, strict=True))
        for job in batch.sequences:
            outcome = outcomes.get(job, _EXPIRED)
            self._drop(job)
            self._cache.put(job.key[0], outcome)
            for ticket, index in job.waiters:
                self._deliver(ticket, index, outcome, computed)

    def _refuse(self, batch: Batch[_Job], error: BaseException) -> None:
        """Nothing could compute a batch: whoever waits for it may come again."""
        detail = error.detail if isinstance(error, Unavailable) else f"the engine failed ({type(error).__name__})"
        for ticket in {ticket for job in batch.sequences for ticket, _ in job.waiters}:
            self._release(ticket)
            if not ticket.done.done():
                ticket.done.set_exception(Unavailable(detail))
        self._hand_over()

    def _deliver(self, ticket: Ticket, index: int, outcome: Outcome, computed: Computed) -> None:
        self._metrics.queue_seconds.observe(max(0.0, computed.started - ticket.arrived))
        if ticket.started is None:
            ticket.started = max(ticket.arrived, computed.started)
        ticket.outcomes[index] = outcome
        del ticket.jobs[index]
        if not ticket.jobs:
            self._end(ticket)

    def _observe(self, batch: Batch[_Job], computed: Computed) -> None:
        shared = batch.num_prefix_tokens
        lengths = [len(job.token_ids) - shared for job in batch.sequences]
        padded = padded_tokens(lengths, self.model.engine.costs)
        seconds = computed.finished - computed.started
        self._metrics.infer_seconds.observe(seconds)
        self._metrics.engine_seconds.labels("alone" if computed.is_alone else "shared").inc(seconds)
        self._metrics.batch_sequences.observe(len(lengths))
        self._metrics.batch_tokens.observe(padded + computed.num_prefix_tokens)
        self._metrics.computed_tokens.inc(sum(lengths) + computed.num_prefix_tokens)
        self._metrics.padding_tokens.inc(padded - sum(lengths))
        self._metrics.shared_tokens.inc(max(0, len(lengths) * shared - computed.num_prefix_tokens))

    def _show_queue(self) -> None:
        """The gauges add up the queues of all models."""
        self._queue_changed.set()
        shown, self._shown = self._shown, (len(self._backlog), self._backlog.num_tokens)
        self._metrics.queued_sequences.inc(self._shown[0] - shown[0])
        self._metrics.queued_tokens.inc(self._shown[1] - shown[1])


def admit(
    requests: Sequence[tuple[Scheduler, Sequence[TokenizedText]]], *, deadline: float = math.inf, client: str = ""
) -> list[Ticket]:
    """Queue the sequences of a request in one queue or several: in all of them, or where one has no room, in none.

    Nothing is awaited between the first question and the last ticket: nobody can take the room meanwhile, and no engine
    begins what another queue refuses.

    Raises:
        QueueFull, TooLarge, Unavailable: as `require_room` does.
    """
    for scheduler, texts in requests:
        scheduler.require_room(len(texts), _count_tokens(texts), deadline=deadline, client=client)
    return [scheduler.submit(texts, deadline=deadline, client=client) for scheduler, texts in requests]


def _count_tokens(texts: Sequence[TokenizedText]) -> int:
    return sum(len(text.token_ids) for text in texts)
