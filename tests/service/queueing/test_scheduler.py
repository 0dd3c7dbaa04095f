import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.engine.device import ThreadsDevice
from plaudit_service.engine.engine_threads import EngineThreads
from plaudit_service.engine.model import Failure, Model
from plaudit_service.engine.runtime import CPU_COSTS
from plaudit_service.errors import QueueFull, TooLarge, Unavailable
from plaudit_service.metrics import Metrics
from plaudit_service.queueing.scheduler import Scheduler, admit
from plaudit_service.results import Status
from plaudit_service.settings import Settings
from plaudit_service.text.places import Places
from plaudit_service.text.tokenization import TokenizedText

# After this a test has failed; far above what a busy machine takes.
_PATIENCE_S = 120


class FakeEngine:
    """Scores a sequence with its first token id; holds its batches until it may go on, and fails on id 13."""

    name = "fake"
    tolerance = 0.0
    promises_bits = True
    costs = CPU_COSTS

    def __init__(self):
        self.batches = []
        self.memory_tokens = float("inf")
        self._may_go_on = threading.Event()
        self._has_a_batch = threading.Event()

    def run_along(self, batch, prefix=None):
        heads = self.run(batch, prefix)
        return heads, [np.full((len(text.token_ids), 1), first) for text, first in zip(batch, heads[:, 0], strict=True)]

    def run(self, batch, prefix=None):
        self._has_a_batch.set()
        assert self._may_go_on.wait(_PATIENCE_S)
        self.batches.append([int(text.token_ids[0]) for text in batch])
        if 13 in self.batches[-1]:
            raise RuntimeError("unlucky")
        if sum(len(text.token_ids) for text in batch) > self.memory_tokens:
            raise RuntimeError("CUDA error: out of memory")
        return np.array([[first] for first in self.batches[-1]], dtype=np.float32)

    async def has_a_batch(self):
        """Wait until the engine's thread holds a batch."""
        assert await asyncio.to_thread(self._has_a_batch.wait, _PATIENCE_S)

    def go_on(self):
        """Compute what is held and whatever comes."""
        self._may_go_on.set()

    def hold(self):
        """Hold the next batch again."""
        self._may_go_on.clear()
        self._has_a_batch.clear()


@dataclass
class Queue:
    """A scheduler, the engine behind it, which holds every batch at first, and a clock that stands still."""

    scheduler: Scheduler
    engine: FakeEngine
    metrics: Metrics
    clock: list[float]

    def ask(self, *first_ids, length=4, **options):
        """A request that is in the queue, or on its way to the engine if that was idle."""
        return self.ask_for(texts(*first_ids, length=length), **options)

    def ask_for(self, texts, **options):
        """The same with other texts than those of one token id."""
        (ticket,) = admit([(self.scheduler, texts)], **options)
        return ticket

    async def occupy(self, *first_ids, **options):
        """A request whose batch the engine holds, so that what comes after it waits."""
        ticket = self.ask(*first_ids, **options)
        await self.engine.has_a_batch()
        return ticket

    async def wait_for_room(self, *first_ids, **options):
        """Who waits for room, and found none until now."""
        waiting = asyncio.create_task(self.scheduler.wait_for_room(texts(*first_ids), **options))
        await asyncio.sleep(0)  # the task runs until it waits
        assert not waiting.done()
        return waiting

    def another(self, **settings):
        """The queue of a second model on the same device."""
        metrics = Metrics()
        scheduler = Scheduler(self.scheduler.model, Settings(**settings), metrics, self.scheduler.device)
        return replace(self, scheduler=scheduler, metrics=metrics)

    @property
    def now(self):
        """What the clock shows."""
        return self.clock[0]

    def pass_time(self, seconds):
        """Let the clock go on."""
        self.clock[0] += seconds

    def value(self, name, **labels):
        """A metric, without its prefix."""
        return self.metrics.registry.get_sample_value(f"plaudit_{name}", labels)


async def outcomes(*tickets):
    """What requests got, once all of them have ended."""
    async with asyncio.timeout(_PATIENCE_S):
        await asyncio.gather(*(ticket.done for ticket in tickets))
    return [list(ticket.outcomes.values()) for ticket in tickets]


async def leave(*tickets):
    """Want requests no more, and let the scheduler see it."""
    for ticket in tickets:
        ticket.done.cancel()
    await asyncio.gather(*(ticket.done for ticket in tickets), return_exceptions=True)


def statuses(outcomes):
    return [outcome.status for outcome in outcomes]


def asking(*first_ids, length=4):
    """Texts of which values along them are asked for."""
    everything = Places(np.arange(length), np.arange(length), None, None, None)
    return [replace(text, places=everything) for text in texts(*first_ids, length=length)]


def texts(*first_ids, length=4):
    return [
        TokenizedText(np.full(length, first), None, length, False, index=index) for index, first in enumerate(first_ids)
    ]


@pytest.fixture
def running(tiny_bundle):
    """A context manager that gives a Queue with these settings."""
    bundle = load_bundle(tiny_bundle())

    @asynccontextmanager
    async def run(*, num_calls=1, **settings):
        clock, metrics, thread, engine = [100.0], Metrics(), EngineThreads(num_calls), FakeEngine()
        model = Model(bundle, engine, shares=[engine] * num_calls)
        device = ThreadsDevice(model, thread, lambda: clock[0])
        scheduler = Scheduler(model, Settings(**settings), metrics, device, clock=lambda: clock[0])
        try:
            yield Queue(scheduler, engine, metrics, clock)
        finally:
            engine.go_on()
            thread.stop()

    return run


def test_what_arrives_while_the_engine_computes_goes_into_one_batch(running):
    async def scenario():
        async with running() as queue:
            first = await queue.occupy(1)
            others = [queue.ask(number) for number in (2, 3, 4)]
            assert queue.value("queued_sequences") == 3
            assert queue.value("queued_tokens") == 12
            assert queue.value("running_sequences") == 1
            queue.engine.go_on()
            assert await outcomes(first, *others) == [[(1.0,)], [(2.0,)], [(3.0,)], [(4.0,)]]
            assert queue.engine.batches == [[1], [2, 3, 4]]
            assert queue.value("queued_sequences") == 0

    asyncio.run(scenario())


def test_a_sequence_that_makes_the_engine_raise_is_isolated(running):
    async def scenario():
        async with running() as queue:
            queue.engine.go_on()
            failed = Failure(Status.FAILED, "the engine failed: RuntimeError")
            assert await outcomes(queue.ask(1, 2, 13, 4, 5)) == [[(1.0,), (2.0,), failed, (4.0,), (5.0,)]]

    asyncio.run(scenario())


def test_a_request_is_admitted_whole_or_not_at_all(running):
    async def scenario():
        async with running(max_queued_sequences=3) as queue:
            first = await queue.occupy(1)
            second = queue.ask(2, 3)
            with pytest.raises(QueueFull, match="2 sequences wait, the request has 2 more, limit 3"):
                queue.ask(4, 5)
            with pytest.raises(TooLarge, match="4 sequences, the whole queue holds 3"):
                queue.ask(6, 7, 8, 9)
            queue.engine.go_on()
            await outcomes(first, second)
            assert queue.engine.batches == [[1], [2, 3]]

    asyncio.run(scenario())


def test_the_queue_is_bounded_in_tokens_too(running):
    async def scenario():
        async with running(max_queued_tokens=10) as queue:
            first = await queue.occupy(1)
            second = queue.ask(2, length=8)
            with pytest.raises(QueueFull, match="8 tokens wait, the request has 4 more, limit 10"):
                queue.ask(3)
            queue.engine.go_on()
            await outcomes(first, second)

    asyncio.run(scenario())


def test_a_deadline_that_what_waits_would_outlast_is_refused_at_once(running):
    async def scenario():
        async with running() as queue:
            first = await queue.occupy(1)
            queue.pass_time(2.0)  # four tokens took two seconds
            queue.engine.go_on()
            await outcomes(first)
            queue.engine.hold()
            second = await queue.occupy(2)
            queue.scheduler.require_room(1, deadline=queue.now + 0.1)  # nothing waits, so the pace refuses nobody
            third = queue.ask(3, 4)
            for late in (0.5, 3.9):
                with pytest.raises(QueueFull, match=f"2 sequences wait, .* about 4.0 s, .* passes in {late} s") as full:
                    queue.ask(5, deadline=queue.now + late)
                assert full.value.retry_after_s == 2  # half of the queue is worked off by then
            queue.scheduler.require_room(1, deadline=queue.now + 4.1)
            queue.engine.go_on()
            await outcomes(second, third)

    asyncio.run(scenario())


def test_what_waits_for_room_with_a_deadline_gets_it_or_expires(running):
    async def scenario():
        async with running(max_queued_sequences=1) as queue:
            first, second = await queue.occupy(1), queue.ask(2)
            room = await queue.wait_for_room(3, deadline=queue.now + 1)
            queue.pass_time(2.0)
            queue.engine.go_on()
            await outcomes(first, second)
            await asyncio.wait_for(room, _PATIENCE_S)
            (late,) = await outcomes(queue.ask(3, deadline=queue.now - 1))
            assert statuses(late) == [Status.EXPIRED]

    asyncio.run(scenario())


def test_a_sequence_past_its_deadline_expires_without_compute(running):
    async def scenario():
        async with running() as queue:
            first = await queue.occupy(1)
            late, in_time = queue.ask(2, deadline=queue.now + 5), queue.ask(3, deadline=queue.now + 15)
            queue.pass_time(10.0)
            queue.engine.go_on()
            _, late, in_time = await outcomes(first, late, in_time)
            assert statuses(late) == [Status.EXPIRED]
            assert in_time == [(3.0,)]
            assert queue.engine.batches == [[1], [3]]
            assert queue.value("expired_total") == 1

    asyncio.run(scenario())


def test_an_abandoned_request_leaves_the_queue_without_compute(running):
    async def scenario():
        async with running() as queue:
            first, gone = await queue.occupy(1), queue.ask(2, 3)
            await leave(gone)
            queue.engine.go_on()
            await outcomes(first)
            assert await outcomes(queue.ask(4)) == [[(4.0,)]]
            assert queue.engine.batches == [[1], [4]]
            assert queue.value("cancelled_total") == 2

    asyncio.run(scenario())


def test_padding_and_computed_tokens_are_counted(running):
    async def scenario():
        async with running() as queue:
            queue.engine.go_on()
            shorter = [replace(text, index=1) for text in texts(2, length=7)]
            await outcomes(queue.ask_for([*texts(1, length=10), *shorter]))
            assert queue.value("computed_tokens_total") == 17
            assert queue.value("padding_tokens_total") == 3
            assert queue.value("batch_tokens_sum") == 20

    asyncio.run(scenario())


def test_times_and_sizes_are_those_of_the_sequences_and_batches(running):
    async def scenario():
        async with running(max_batch_tokens=8) as queue:
            first, others = await queue.occupy(1), queue.ask(2, 3, 4)
            queue.pass_time(7.0)
            queue.engine.go_on()
            await outcomes(first, others)
            assert queue.value("queue_seconds_count") == 4
            assert queue.value("queue_seconds_sum") == 3 * 7.0
            assert queue.value("infer_seconds_sum") == queue.value("engine_seconds_total", threads="alone") == 7.0
            assert queue.value("infer_seconds_count") == queue.value("batch_sequences_count") == 3
            assert queue.value("batch_sequences_sum") == 4
            assert (first.queue_s, first.infer_s, others.queue_s) == (0.0, 7.0, 7.0)

    asyncio.run(scenario())


def test_a_full_batch_is_handed_over_while_the_engine_computes_and_a_part_stays_open(running):
    async def scenario():
        async with running(max_batch_tokens=8) as queue:
            requests = [await queue.occupy(1), queue.ask(2, 3), queue.ask(4)]
            assert queue.value("running_sequences") == 3
            assert queue.value("queued_sequences") == 1
            requests.append(queue.ask(5))
            queue.engine.go_on()
            await outcomes(*requests)
            assert queue.engine.batches == [[1], [2, 3], [4, 5]]

    asyncio.run(scenario())


def test_identical_sequences_in_flight_are_computed_once(running):
    async def scenario():
        async with running() as queue:
            requests = [await queue.occupy(1), queue.ask(1, 2), queue.ask(2, 2), queue.ask(3, 1)]
            queue.engine.go_on()
            expected = [[(1.0,)], [(1.0,), (2.0,)], [(2.0,), (2.0,)], [(3.0,), (1.0,)]]
            assert await outcomes(*requests) == expected
            assert queue.engine.batches == [[1], [2, 3]]

    asyncio.run(scenario())


def test_sequences_of_one_text_in_other_segments_are_not_identical(running):
    async def scenario():
        async with running() as queue:
            queue.engine.go_on()
            ids = np.full(4, 1)
            pair = TokenizedText(ids, np.array([0, 0, 1, 1]), 4, False, index=1)
            await outcomes(queue.ask_for([TokenizedText(ids, None, 4, False), pair]))
            assert queue.engine.batches == [[1, 1]]

    asyncio.run(scenario())


def test_a_shared_sequence_is_cancelled_with_the_last_who_waits_for_it(running):
    async def scenario():
        async with running() as queue:
            first = await queue.occupy(1)
            gone = [queue.ask(2, 3), queue.ask(3, 4), queue.ask(4)]
            stays = queue.ask(2)
            await leave(*gone)
            assert queue.value("queued_sequences") == 1
            queue.engine.go_on()
            await outcomes(first, stays)
            assert queue.engine.batches == [[1], [2]]
            assert queue.value("cancelled_total") == 5

    asyncio.run(scenario())


def test_a_sequence_that_was_abandoned_after_it_was_handed_over_is_computed_for_the_next_who_wants_it(running):
    async def scenario():
        async with running(max_batch_tokens=8) as queue:
            first, gone = await queue.occupy(1), queue.ask(2, 3)
            assert queue.value("running_sequences") == 3
            await leave(gone)
            again = queue.ask(2)
            queue.engine.go_on()
            assert await outcomes(first, again) == [[(1.0,)], [(2.0,)]]
            assert queue.engine.batches == [[1], [2]]

    asyncio.run(scenario())


def test_a_sequence_that_several_wait_for_lives_until_the_latest_deadline(running):
    async def scenario():
        async with running() as queue:
            first = await queue.occupy(1)
            early, late = queue.ask(2, deadline=queue.now + 5), queue.ask(2, deadline=queue.now + 15)
            queue.pass_time(10.0)
            queue.engine.go_on()
            _, early, late = await outcomes(first, early, late)
            assert statuses(early) == [Status.EXPIRED]
            assert late == [(2.0,)]

    asyncio.run(scenario())


def test_a_deadline_ends_the_wait_while_the_engine_still_computes(running):
    async def scenario():
        async with running() as queue:
            computing = await queue.occupy(1, deadline=queue.now + 0.01)
            queued = queue.ask(2, deadline=queue.now + 0.01)
            for expired in await outcomes(computing, queued):
                assert statuses(expired) == [Status.EXPIRED]
            assert queue.value("expired_total") == 2
            assert queue.engine.batches == []

    asyncio.run(scenario())


def test_out_of_memory_splits_the_batch_and_makes_later_ones_smaller(running):
    async def scenario():
        async with running() as queue:
            queue.engine.go_on()
            queue.engine.memory_tokens = 16
            (eight,) = await outcomes(queue.ask(1, 2, 3, 4, 5, 6, 7, 8))
            assert eight == [(float(number),) for number in range(1, 9)]
            assert queue.engine.batches == [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4], [5, 6, 7, 8]]
            queue.engine.batches.clear()
            await outcomes(queue.ask(1, 2, 3, 4, 5, 6, 7, 8))
            assert queue.engine.batches == [[1, 2, 3, 4], [5, 6, 7, 8]]

    asyncio.run(scenario())


def test_a_hung_engine_fails_what_waits(running):
    async def scenario():
        async with running() as queue:
            tickets = [await queue.occupy(1), queue.ask(2)]
            queue.scheduler.fail(Unavailable("the engine hangs"))
            assert [type(ticket.done.exception()) for ticket in tickets] == [Unavailable] * 2
            assert queue.value("cancelled_total") == 0

    asyncio.run(scenario())


def test_once_the_engine_hung_nobody_is_queued_and_who_waits_for_room_is_told(running):
    async def scenario():
        async with running(max_queued_sequences=1) as queue:
            tickets = [await queue.occupy(1), queue.ask(2)]
            rooms = [await queue.wait_for_room(3), await queue.wait_for_room(4)]
            queue.scheduler.fail(Unavailable("the engine hangs"))
            ends = await asyncio.gather(*(ticket.done for ticket in tickets), *rooms, return_exceptions=True)
            assert [type(error) for error in ends] == [Unavailable] * 4
            with pytest.raises(Unavailable, match="the engine hangs"):
                queue.ask(5)
            assert queue.value("queued_sequences") == 0

    asyncio.run(scenario())


def test_several_queues_take_a_request_all_or_none(running):
    async def scenario():
        async with running(max_queued_sequences=1) as first:
            second = first.another(max_queued_sequences=1)
            computing = await second.occupy(1)
            tickets = admit([(first.scheduler, texts(2)), (second.scheduler, texts(3))])
            with pytest.raises(QueueFull, match="1 sequences wait"):
                admit([(first.scheduler, texts(4)), (second.scheduler, texts(5))])
            with pytest.raises(TooLarge):
                admit([(first.scheduler, texts(6)), (second.scheduler, texts(7, 8))])
            assert (first.value("running_sequences"), first.value("queued_sequences")) == (1, 0)
            first.engine.go_on()
            assert await outcomes(computing, *tickets) == [[(1.0,)], [(2.0,)], [(3.0,)]]
            assert first.engine.batches == [[1], [2], [3]]

    asyncio.run(scenario())


def test_exact_scores_are_kept_when_asked_for_and_failures_are_not(running):
    async def scenario():
        async with running(score_cache_size=2) as queue:
            queue.engine.go_on()
            await outcomes(queue.ask(1, 13))
            queue.engine.batches.clear()
            (again,) = await outcomes(queue.ask(1, 13))
            assert again[0] == (1.0,)
            assert queue.engine.batches == [[13]]
            assert queue.value("score_cache_hits_total") == 1
            await outcomes(queue.ask(2, 3))  # 1 is forgotten
            queue.engine.batches.clear()
            await outcomes(queue.ask(1, 3))
            assert queue.engine.batches == [[1]]

    asyncio.run(scenario())


def test_who_asks_for_a_score_waits_for_one_who_asks_for_values_too_but_not_the_other_way(running):
    async def scenario():
        async with running() as queue:
            first = await queue.occupy(9)
            requests = [queue.ask(1), queue.ask_for(asking(1, 2)), queue.ask(2), queue.ask_for(asking(2))]
            queue.engine.go_on()
            await outcomes(first, *requests)
            assert sorted(chain.from_iterable(queue.engine.batches)) == [1, 1, 2, 9]
            second, fourth = requests[1].outcomes[1], requests[3].outcomes[0]
            assert (second.heads, second.tokens[:, 0].tolist()) == ((2.0,), [2.0] * 4)
            assert fourth is second
            assert requests[0].outcomes == {0: (1.0,)}
            assert requests[2].outcomes == {0: second}

    asyncio.run(scenario())


def test_an_outcome_goes_to_the_index_that_its_sequence_has_in_the_request(running):
    async def scenario():
        async with running() as queue:
            first = await queue.occupy(9)
            shuffled = [replace(text, index=index) for text, index in zip(texts(1, 2, 2, 3), (7, 4, 0, 2), strict=True)]
            request, other = queue.ask_for(shuffled), queue.ask(3, 1)
            queue.engine.go_on()
            await outcomes(first, request, other)
            assert request.outcomes == {7: (1.0,), 4: (2.0,), 0: (2.0,), 2: (3.0,)}
            assert other.outcomes == {0: (3.0,), 1: (1.0,)}

    asyncio.run(scenario())


def test_values_along_a_text_are_not_kept_but_its_score_is(running):
    async def scenario():
        async with running(score_cache_size=2) as queue:
            queue.engine.go_on()
            await outcomes(queue.ask_for(asking(1)))
            assert await outcomes(queue.ask(1)) == [[(1.0,)]]
            assert queue.engine.batches == [[1]]
            ((again,),) = await outcomes(queue.ask_for(asking(1)))
            assert again.tokens.shape == (4, 1)
            assert queue.engine.batches == [[1], [1]]
            assert queue.value("score_cache_hits_total") == 1

    asyncio.run(scenario())


def test_a_client_waits_for_the_batch_that_computes_and_for_nothing_else_that_another_queued(running):
    async def scenario():
        async with running(max_batch_tokens=8) as queue:
            burst = [await queue.occupy(1, client="trainer"), queue.ask(*range(20, 30), client="trainer")]
            single = queue.ask(5, client="person")
            queue.engine.go_on()
            await outcomes(*burst, single)
            assert queue.engine.batches[0] == [1]
            assert 5 in queue.engine.batches[1]
            assert queue.value("batches_taken_back_total") == 1
            assert sorted(chain(*queue.engine.batches)) == [1, 5, *range(20, 30)]  # each once

    asyncio.run(scenario())


def test_clients_that_are_not_told_apart_are_served_in_the_order_of_arrival(running):
    async def scenario():
        async with running(max_batch_tokens=4) as queue:
            requests = [await queue.occupy(1), queue.ask(20, 21, 22), queue.ask(5)]
            queue.engine.go_on()
            await outcomes(*requests)
            assert queue.engine.batches == [[1], [20], [21], [22], [5]]
            assert queue.value("batches_taken_back_total") == 0

    asyncio.run(scenario())


def test_two_clients_get_the_engine_in_turn_by_tokens(running):
    async def scenario():
        async with running(max_batch_tokens=4) as queue:
            requests = [await queue.occupy(1, client="a"), queue.ask(*range(20, 24), client="a")]
            requests.append(queue.ask_for([*texts(31, 32, length=8)], client="b"))
            queue.engine.go_on()
            await outcomes(*requests)
            # 8 tokens of b, 4 of what a had before, then as many of a as of b.
            assert queue.engine.batches == [[1], [31], [20], [21], [32], [22], [23]]

    asyncio.run(scenario())


def test_a_client_leaves_room_for_others_and_is_told_what_its_share_is(running):
    async def scenario():
        async with running(max_queued_sequences=10) as queue:
            await queue.occupy(1, client="person")
            with pytest.raises(TooLarge, match="9 sequences, one client's share of the queue is 8"):
                queue.ask(*range(20, 29), client="trainer")
            burst = queue.ask(*range(20, 28), client="trainer")
            with pytest.raises(
                QueueFull, match="8 sequences wait and 8 of this client wait or run, the request has 1 more"
            ):
                queue.ask(30, client="trainer")
            single = queue.ask(2, client="person")
            queue.engine.go_on()
            await outcomes(burst, single)

    asyncio.run(scenario())


def test_who_waits_for_room_keeps_no_other_client_from_the_room_that_is_left(running):
    async def scenario():
        async with running(max_queued_sequences=10) as queue:
            await queue.occupy(1, client="person")
            burst = queue.ask(*range(20, 28), client="trainer")
            more = [await queue.wait_for_room(first, client="trainer") for first in (30, 31)]
            await asyncio.wait_for(queue.scheduler.wait_for_room(texts(2), client="person"), _PATIENCE_S)
            single = queue.ask(2, client="person")
            queue.engine.go_on()
            await asyncio.wait_for(asyncio.gather(*more), _PATIENCE_S)
            await outcomes(burst, single)

    asyncio.run(scenario())


def test_a_sequence_that_another_client_queued_is_computed_at_the_earlier_turn(running):
    async def scenario():
        async with running(max_batch_tokens=4) as queue:
            requests = [await queue.occupy(1, client="a"), queue.ask(*range(20, 24), client="a")]
            requests.append(queue.ask(23, client="b"))
            queue.engine.go_on()
            await outcomes(*requests)
            assert queue.engine.batches == [[1], [23], [20], [21], [22]]

    asyncio.run(scenario())


def test_a_deadline_is_held_against_what_goes_before_and_not_against_what_others_queued(running):
    async def scenario():
        async with running(max_batch_tokens=4) as queue:
            queue.engine.go_on()
            first = queue.ask(1, client="trainer")
            queue.pass_time(1)
            await outcomes(first)
            queue.engine.hold()
            burst = [await queue.occupy(2, client="trainer"), queue.ask(*range(20, 30), client="trainer")]
            with pytest.raises(QueueFull, match="which takes about"):
                queue.ask(30, client="trainer", deadline=queue.now + 1)
            single = queue.ask(30, client="person", deadline=queue.now + 3)
            queue.engine.go_on()
            assert await outcomes(single) == [[(30.0,)]]
            await outcomes(*burst)

    asyncio.run(scenario())


def test_eight_calls_at_once_are_kept_busy_with_one_batch_ready_behind_them(running):
    async def scenario():
        async with running(max_batch_tokens=4, num_calls=8) as queue:
            first = await queue.occupy(1)
            burst = queue.ask(*range(20, 60))
            # One call has the whole device; eight of four tokens lie ready for when it ends.
            assert queue.value("running_sequences") == 9
            assert queue.value("queued_sequences") == 32
            queue.engine.go_on()
            assert await outcomes(first, burst) == [[(1.0,)], [(float(number),) for number in range(20, 60)]]
            assert sorted(chain(*queue.engine.batches)) == [1, *range(20, 60)]

    asyncio.run(scenario())


def test_models_on_one_device_are_served_in_turn(running):
    async def scenario():
        async with running(max_batch_tokens=4) as first:
            second = first.another(max_batch_tokens=4)
            requests = [await first.occupy(1, 2, 3, 4), second.ask(101, 102, 103)]
            first.engine.go_on()
            await outcomes(*requests)
            assert first.engine.batches == [[1], [2], [101], [102], [3], [4], [103]]

    asyncio.run(scenario())


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.booleans(), st.sampled_from(["", "a", "b"])),
        max_size=12,
    ),
    st.integers(4, 40),
    st.integers(1, 3),
)
def test_everyone_gets_the_scores_of_their_own_sequences_whoever_leaves(running, requests, budget, num_calls):
    async def scenario():
        async with running(max_batch_tokens=budget, num_calls=num_calls) as queue:
            first = await queue.occupy(1)
            asked = [(queue.ask(*ids, client=client), ids, leaves) for ids, leaves, client in requests]
            leaving = [ticket for ticket, _, leaves in asked if leaves]
            staying = [(ticket, ids) for ticket, ids, leaves in asked if not leaves]
            for ticket in leaving:
                ticket.done.cancel()
            queue.engine.go_on()  # before the scheduler sees who left
            assert await outcomes(first) == [[(1.0,)]]
            for ticket, ids in staying:
                assert await outcomes(ticket) == [[(float(number),) for number in ids]]
            await outcomes(queue.ask(99))  # what was abandoned in the engine has ended by then
            for gauge in ("queued_sequences", "queued_tokens", "running_sequences"):
                assert queue.value(gauge) == 0
            queue.engine.batches.clear()
            again = await outcomes(queue.ask(*range(1, 13)))  # nothing that has ended is still waited for
            assert again == [[(float(number),) for number in range(1, 13)]]
            assert sorted(chain(*queue.engine.batches)) == list(range(1, 13))

    asyncio.run(scenario())
