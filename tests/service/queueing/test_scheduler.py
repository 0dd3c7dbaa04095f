import asyncio
import threading
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.engine.engine_thread import EngineThread
from plaudit_service.engine.model import Failure, Model
from plaudit_service.errors import QueueFull, TooLarge, Unavailable
from plaudit_service.metrics import Metrics
from plaudit_service.queueing.scheduler import Scheduler, admit
from plaudit_service.results import Status
from plaudit_service.settings import Settings
from plaudit_service.text.tokenization import TokenizedText


class FakeEngine:
    """Scores a sequence with its first token id; waits for `gate`, records its batches, fails on id 13."""

    name = "fake"
    tolerance = 0.0
    promises_bits = True

    def __init__(self):
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches = []
        self.memory_tokens = float("inf")

    def run(self, batch, prefix=None):
        self.entered.set()
        assert self.gate.wait(10)
        self.batches.append([int(text.token_ids[0]) for text in batch])
        if 13 in self.batches[-1]:
            raise RuntimeError("unlucky")
        if sum(len(text.token_ids) for text in batch) > self.memory_tokens:
            raise RuntimeError("CUDA error: out of memory")
        return np.array([[first] for first in self.batches[-1]], dtype=np.float32)


def texts(*first_ids, length=4):
    return [TokenizedText(np.full(length, first), None, length, False) for first in first_ids]


@pytest.fixture
def running(tiny_bundle):
    bundle = load_bundle(tiny_bundle())

    @asynccontextmanager
    async def run(**settings):
        clock = [100.0]
        thread = EngineThread()
        engine = FakeEngine()
        model = Model(bundle, engine)
        try:
            yield Scheduler(model, Settings(**settings), Metrics(), thread, clock=lambda: clock[0]), engine, clock
        finally:
            engine.gate.set()
            thread.stop()

    return run


async def compute(scheduler, texts, **options):
    """The ticket of a request that is admitted and has its outcomes."""
    (ticket,) = admit([(scheduler, texts)], **options)
    await ticket.done
    return ticket


async def engine_entered(engine):
    await asyncio.to_thread(engine.entered.wait, 10)


def value(scheduler, name):
    return scheduler._metrics.registry.get_sample_value(f"plaudit_{name}")


def test_what_arrives_while_the_engine_computes_goes_into_one_batch(running):
    async def scenario():
        async with running() as (scheduler, engine, _):
            first = asyncio.create_task(compute(scheduler, texts(1)))
            await engine_entered(engine)
            others = [asyncio.create_task(compute(scheduler, texts(number))) for number in (2, 3, 4)]
            await asyncio.sleep(0)
            assert value(scheduler, "queued_sequences") == 3
            assert value(scheduler, "queued_tokens") == 12
            assert value(scheduler, "running_sequences") == 1
            engine.gate.set()
            tickets = await asyncio.gather(first, *others)
            assert engine.batches == [[1], [2, 3, 4]]
            assert [ticket.outcomes for ticket in tickets] == [[(1.0,)], [(2.0,)], [(3.0,)], [(4.0,)]]
            assert value(scheduler, "queued_sequences") == 0

    asyncio.run(scenario())


def test_a_sequence_that_makes_the_engine_raise_is_isolated(running):
    async def scenario():
        async with running() as (scheduler, engine, _):
            engine.gate.set()
            ticket = await compute(scheduler, texts(1, 2, 13, 4, 5))
            failed = Failure(Status.FAILED, "the engine failed: RuntimeError")
            assert ticket.outcomes == [(1.0,), (2.0,), failed, (4.0,), (5.0,)]

    asyncio.run(scenario())


def test_a_request_is_admitted_whole_or_not_at_all(running):
    async def scenario():
        async with running(max_queued_sequences=3) as (scheduler, engine, _):
            first = asyncio.create_task(compute(scheduler, texts(1)))
            await engine_entered(engine)
            second = asyncio.create_task(compute(scheduler, texts(2, 3)))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="2 sequences wait, the request has 2 more, limit 3"):
                await compute(scheduler, texts(4, 5))
            with pytest.raises(TooLarge, match="4 sequences, the whole queue holds 3"):
                await compute(scheduler, texts(6, 7, 8, 9))
            engine.gate.set()
            await asyncio.gather(first, second)
            assert engine.batches == [[1], [2, 3]]

    asyncio.run(scenario())


def test_the_queue_is_bounded_in_tokens_too(running):
    async def scenario():
        async with running(max_queued_tokens=10) as (scheduler, engine, _):
            first = asyncio.create_task(compute(scheduler, texts(1)))
            await engine_entered(engine)
            second = asyncio.create_task(compute(scheduler, texts(2, length=8)))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="8 tokens wait, the request has 4 more, limit 10"):
                await compute(scheduler, texts(3))
            engine.gate.set()
            await asyncio.gather(first, second)

    asyncio.run(scenario())


def test_a_deadline_that_what_waits_would_outlast_is_refused_at_once(running):
    async def scenario():
        async with running() as (scheduler, engine, clock):
            first = asyncio.create_task(compute(scheduler, texts(1)))
            await engine_entered(engine)
            clock[0] += 2.0  # four tokens took two seconds
            engine.gate.set()
            await first
            engine.gate.clear()
            engine.entered.clear()
            second = asyncio.create_task(compute(scheduler, texts(2)))
            await engine_entered(engine)
            scheduler.require_room(1, deadline=clock[0] + 0.1)  # nothing waits, so the pace refuses nobody
            third = asyncio.create_task(compute(scheduler, texts(3, 4)))
            await asyncio.sleep(0)
            for late in (0.5, 3.9):
                with pytest.raises(QueueFull, match=f"2 sequences wait, .* about 4.0 s, .* passes in {late} s") as full:
                    await compute(scheduler, texts(5), deadline=clock[0] + late)
                assert full.value.retry_after_s == 2  # half of the queue is worked off by then
            scheduler.require_room(1, deadline=clock[0] + 4.1)
            engine.gate.set()
            await asyncio.gather(second, third)

    asyncio.run(scenario())


def test_what_waits_for_room_with_a_deadline_gets_it_or_expires(running):
    async def scenario():
        async with running(max_queued_sequences=1) as (scheduler, engine, clock):
            first = asyncio.create_task(compute(scheduler, texts(1)))
            await engine_entered(engine)
            second = asyncio.create_task(compute(scheduler, texts(2)))
            await asyncio.sleep(0)
            room = asyncio.create_task(scheduler.wait_for_room(texts(3), deadline=clock[0] + 1))
            await asyncio.sleep(0)
            assert not room.done()
            clock[0] += 2
            engine.gate.set()
            await asyncio.gather(first, second, room)
            late = await compute(scheduler, texts(3), deadline=clock[0] - 1)
            assert late.outcomes[0].status is Status.EXPIRED

    asyncio.run(scenario())


def test_a_sequence_past_its_deadline_expires_without_compute(running):
    async def scenario():
        async with running() as (scheduler, engine, clock):
            first = asyncio.create_task(compute(scheduler, texts(1)))
            await engine_entered(engine)
            late = asyncio.create_task(compute(scheduler, texts(2), deadline=105.0))
            in_time = asyncio.create_task(compute(scheduler, texts(3), deadline=115.0))
            await asyncio.sleep(0)
            clock[0] = 110.0
            engine.gate.set()
            _, late, in_time = await asyncio.gather(first, late, in_time)
            assert late.outcomes[0].status is Status.EXPIRED
            assert in_time.outcomes == [(3.0,)]
            assert engine.batches == [[1], [3]]
            assert value(scheduler, "expired_total") == 1

    asyncio.run(scenario())


def test_an_abandoned_request_leaves_the_queue_without_compute(running):
    async def scenario():
        async with running() as (scheduler, engine, _):
            first = asyncio.create_task(compute(scheduler, texts(1)))
            await engine_entered(engine)
            gone = asyncio.create_task(compute(scheduler, texts(2, 3)))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            engine.gate.set()
            await first
            ticket = await compute(scheduler, texts(4))
            assert ticket.outcomes == [(4.0,)]
            assert engine.batches == [[1], [4]]
            assert value(scheduler, "cancelled_total") == 2

    asyncio.run(scenario())


def test_padding_and_computed_tokens_are_counted(running):
    async def scenario():
        async with running() as (scheduler, engine, _):
            engine.gate.set()
            await compute(scheduler, [*texts(1, length=10), *texts(2, length=7)])
            assert value(scheduler, "computed_tokens_total") == 17
            assert value(scheduler, "padding_tokens_total") == 3
            assert value(scheduler, "batch_tokens_sum") == 20

    asyncio.run(scenario())


def test_times_and_sizes_are_those_of_the_sequences_and_batches(running):
    async def scenario():
        async with running(max_batch_tokens=8) as (scheduler, engine, clock):
            first = asyncio.create_task(compute(scheduler, texts(1)))
            await engine_entered(engine)
            others = asyncio.create_task(compute(scheduler, texts(2, 3, 4)))
            await asyncio.sleep(0)
            clock[0] += 7.0
            engine.gate.set()
            first, others = await asyncio.gather(first, others)
            assert value(scheduler, "queue_seconds_count") == 4
            assert value(scheduler, "queue_seconds_sum") == 3 * 7.0
            assert value(scheduler, "infer_seconds_sum") == 7.0
            assert value(scheduler, "infer_seconds_count") == value(scheduler, "batch_sequences_count") == 3
            assert value(scheduler, "batch_sequences_sum") == 4
            assert (first.queue_s, first.infer_s, others.queue_s) == (0.0, 7.0, 7.0)

    asyncio.run(scenario())


def test_a_full_batch_is_handed_over_while_the_engine_computes_and_a_part_stays_open(running):
    async def scenario():
        async with running(max_batch_tokens=8) as (scheduler, engine, _):
            requests = [asyncio.create_task(compute(scheduler, texts(1)))]
            await engine_entered(engine)
            for ids in ((2, 3), (4,)):
                requests.append(asyncio.create_task(compute(scheduler, texts(*ids))))
                await asyncio.sleep(0)
            assert value(scheduler, "running_sequences") == 3
            assert value(scheduler, "queued_sequences") == 1
            requests.append(asyncio.create_task(compute(scheduler, texts(5))))
            await asyncio.sleep(0)
            engine.gate.set()
            await asyncio.gather(*requests)
            assert engine.batches == [[1], [2, 3], [4, 5]]

    asyncio.run(scenario())


def test_identical_sequences_in_flight_are_computed_once(running):
    async def scenario():
        async with running() as (scheduler, engine, _):
            first = asyncio.create_task(compute(scheduler, texts(1)))
            await engine_entered(engine)
            others = [asyncio.create_task(compute(scheduler, texts(*ids))) for ids in ((1, 2), (2, 2), (3, 1))]
            await asyncio.sleep(0)
            engine.gate.set()
            tickets = await asyncio.gather(first, *others)
            assert engine.batches == [[1], [2, 3]]
            expected = [[(1.0,)], [(1.0,), (2.0,)], [(2.0,), (2.0,)], [(3.0,), (1.0,)]]
            assert [ticket.outcomes for ticket in tickets] == expected

    asyncio.run(scenario())


def test_sequences_of_one_text_in_other_segments_are_not_identical(running):
    async def scenario():
        async with running() as (scheduler, engine, _):
            engine.gate.set()
            ids = np.full(4, 1)
            pair = TokenizedText(ids, np.array([0, 0, 1, 1]), 4, False)
            await compute(scheduler, [TokenizedText(ids, None, 4, False), pair])
            assert engine.batches == [[1, 1]]

    asyncio.run(scenario())


def test_a_shared_sequence_is_cancelled_with_the_last_who_waits_for_it(running):
    async def scenario():
        async with running() as (scheduler, engine, _):
            first = asyncio.create_task(compute(scheduler, texts(1)))
            await engine_entered(engine)
            gone = [asyncio.create_task(compute(scheduler, texts(*ids))) for ids in ((2, 3), (3, 4), (4,))]
            stays = asyncio.create_task(compute(scheduler, texts(2)))
            await asyncio.sleep(0)
            for task in gone:
                task.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            assert value(scheduler, "queued_sequences") == 1
            engine.gate.set()
            await asyncio.gather(first, stays)
            assert engine.batches == [[1], [2]]
            assert value(scheduler, "cancelled_total") == 5

    asyncio.run(scenario())


def test_a_sequence_that_was_abandoned_after_it_was_handed_over_is_computed_for_the_next_who_wants_it(running):
    async def scenario():
        async with running(max_batch_tokens=8) as (scheduler, engine, _):
            first = asyncio.create_task(compute(scheduler, texts(1)))
            await engine_entered(engine)
            gone = asyncio.create_task(compute(scheduler, texts(2, 3)))
            await asyncio.sleep(0)
            assert value(scheduler, "running_sequences") == 3
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            again = asyncio.create_task(compute(scheduler, texts(2)))
            await asyncio.sleep(0)
            engine.gate.set()
            _, again = await asyncio.gather(first, again)
            assert again.outcomes == [(2.0,)]
            assert engine.batches == [[1], [2]]

    asyncio.run(scenario())


def test_a_sequence_that_several_wait_for_lives_until_the_latest_deadline(running):
    async def scenario():
        async with running() as (scheduler, engine, clock):
            first = asyncio.create_task(compute(scheduler, texts(1)))
            await engine_entered(engine)
            early = asyncio.create_task(compute(scheduler, texts(2), deadline=105.0))
            late = asyncio.create_task(compute(scheduler, texts(2), deadline=115.0))
            await asyncio.sleep(0)
            clock[0] = 110.0
            engine.gate.set()
            _, early, late = await asyncio.gather(first, early, late)
            assert early.outcomes[0].status is Status.EXPIRED
            assert late.outcomes == [(2.0,)]

    asyncio.run(scenario())


def test_a_deadline_ends_the_wait_while_the_engine_still_computes(running):
    async def scenario():
        async with running() as (scheduler, engine, _):
            running_one = asyncio.create_task(compute(scheduler, texts(1), deadline=100.01))
            await engine_entered(engine)
            queued = await compute(scheduler, texts(2), deadline=100.01)
            assert queued.outcomes[0].status is Status.EXPIRED
            assert (await running_one).outcomes[0].status is Status.EXPIRED
            assert value(scheduler, "expired_total") == 2
            assert engine.batches == []

    asyncio.run(scenario())


def test_out_of_memory_splits_the_batch_and_makes_later_ones_smaller(running):
    async def scenario():
        async with running() as (scheduler, engine, _):
            engine.gate.set()
            engine.memory_tokens = 16
            ticket = await compute(scheduler, texts(1, 2, 3, 4, 5, 6, 7, 8))
            assert ticket.outcomes == [(float(number),) for number in range(1, 9)]
            assert engine.batches == [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4], [5, 6, 7, 8]]
            engine.batches.clear()
            await compute(scheduler, texts(1, 2, 3, 4, 5, 6, 7, 8))
            assert engine.batches == [[1, 2, 3, 4], [5, 6, 7, 8]]

    asyncio.run(scenario())


def test_a_hung_engine_fails_what_waits(running):
    async def scenario():
        async with running() as (scheduler, engine, _):
            tasks = [asyncio.create_task(compute(scheduler, texts(number))) for number in (1, 2)]
            await engine_entered(engine)
            scheduler.fail(Unavailable("the engine hangs"))
            assert [type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == [Unavailable] * 2
            assert value(scheduler, "cancelled_total") == 0

    asyncio.run(scenario())


def test_once_the_engine_hung_nobody_is_queued_and_who_waits_for_room_is_told(running):
    async def scenario():
        async with running(max_queued_sequences=1) as (scheduler, engine, _):
            tasks = [asyncio.create_task(compute(scheduler, texts(1)))]
            await engine_entered(engine)
            tasks.append(asyncio.create_task(compute(scheduler, texts(2))))
            await asyncio.sleep(0)
            tasks += [asyncio.create_task(scheduler.wait_for_room(texts(number))) for number in (3, 4)]
            await asyncio.sleep(0)
            scheduler.fail(Unavailable("the engine hangs"))
            assert [type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == [Unavailable] * 4
            with pytest.raises(Unavailable, match="the engine hangs"):
                await compute(scheduler, texts(5))
            assert value(scheduler, "queued_sequences") == 0

    asyncio.run(scenario())


def test_several_queues_take_a_request_all_or_none(running):
    async def scenario():
        async with running(max_queued_sequences=1) as (first, engine, _):
            second = Scheduler(first.model, Settings(max_queued_sequences=1), Metrics(), first.engine_thread)
            running_one = asyncio.create_task(compute(second, texts(1)))
            await engine_entered(engine)
            tickets = admit([(first, texts(2)), (second, texts(3))])
            with pytest.raises(QueueFull, match="1 sequences wait"):
                admit([(first, texts(4)), (second, texts(5))])
            with pytest.raises(TooLarge):
                admit([(first, texts(6)), (second, texts(7, 8))])
            assert (value(first, "running_sequences"), value(first, "queued_sequences")) == (1, 0)
            engine.gate.set()
            await asyncio.gather(running_one, *(ticket.done for ticket in tickets))
            assert [ticket.outcomes for ticket in tickets] == [[(2.0,)], [(3.0,)]]
            assert engine.batches == [[1], [2], [3]]

    asyncio.run(scenario())


def test_exact_scores_are_kept_when_asked_for_and_failures_are_not(running):
    async def scenario():
        async with running(score_cache_size=2) as (scheduler, engine, _):
            engine.gate.set()
            await compute(scheduler, texts(1, 13))
            engine.batches.clear()
            ticket = await compute(scheduler, texts(1, 13))
            assert ticket.outcomes[0] == (1.0,)
            assert engine.batches == [[13]]
            assert value(scheduler, "score_cache_hits_total") == 1
            await compute(scheduler, texts(2, 3))  # 1 is forgotten
            engine.batches.clear()
            await compute(scheduler, texts(1, 3))
            assert engine.batches == [[1]]

    asyncio.run(scenario())


def test_models_on_one_device_are_served_in_turn(running):
    async def scenario():
        async with running(max_batch_tokens=4) as (first, engine, _):
            second = Scheduler(first.model, Settings(max_batch_tokens=4), Metrics(), first.engine_thread)
            tasks = [asyncio.create_task(compute(first, texts(1, 2, 3, 4)))]
            await engine_entered(engine)
            tasks.append(asyncio.create_task(compute(second, texts(101, 102, 103))))
            await asyncio.sleep(0)
            engine.gate.set()
            await asyncio.gather(*tasks)
            assert engine.batches == [[1], [2], [101], [102], [3], [4], [103]]

    asyncio.run(scenario())


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.booleans()), max_size=12),
    st.integers(4, 40),
)
def test_everyone_gets_the_scores_of_their_own_sequences_whoever_leaves(running, requests, budget):
    async def scenario():
        async with running(max_batch_tokens=budget) as (scheduler, engine, _):
            first = asyncio.create_task(compute(scheduler, texts(1)))
            await engine_entered(engine)
            tasks = [asyncio.create_task(compute(scheduler, texts(*ids))) for ids, _ in requests]
            await asyncio.sleep(0)
            for task, (_, leaves) in zip(tasks, requests, strict=True):
                if leaves:
                    task.cancel()
            engine.gate.set()
            await first
            done = await asyncio.gather(*tasks, return_exceptions=True)
            for ticket, (ids, leaves) in zip(done, requests, strict=True):
                if leaves:
                    assert isinstance(ticket, asyncio.CancelledError)
                else:
                    assert ticket.outcomes == [(float(number),) for number in ids]
            await compute(scheduler, texts(99))  # what was abandoned in the engine has ended by then
            for gauge in ("queued_sequences", "queued_tokens", "running_sequences"):
                assert value(scheduler, gauge) == 0
            assert not scheduler._jobs

    asyncio.run(scenario())
