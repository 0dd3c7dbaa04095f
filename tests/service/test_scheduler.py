import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
import pytest

from plaudit_service.bundle import load_bundle
from plaudit_service.errors import QueueFull, TooLarge
from plaudit_service.metrics import Metrics
from plaudit_service.model import Failure, Model
from plaudit_service.scheduler import Scheduler
from plaudit_service.settings import Settings
from plaudit_service.tokenization import TokenizedText
from plaudit_service.wire import Status


class FakeEngine:
    """Scores a sequence with its first token id; waits for `gate`, records its batches, fails on id 13."""

    name = "fake"

    def __init__(self):
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches = []

    def run(self, batch, prefix=None):
        self.entered.set()
        assert self.gate.wait(10)
        self.batches.append([int(text.token_ids[0]) for text in batch])
        if 13 in self.batches[-1]:
            raise RuntimeError("unlucky")
        return np.array([[first] for first in self.batches[-1]], dtype=np.float32)


def texts(*first_ids, length=4):
    return [TokenizedText(np.full(length, first), None, length, False) for first in first_ids]


@pytest.fixture
def running(tiny_bundle):
    bundle = load_bundle(tiny_bundle())

    @asynccontextmanager
    async def run(**settings):
        clock = [100.0]
        with ThreadPoolExecutor(1) as thread:
            engine = FakeEngine()
            model = Model(bundle, engine)
            scheduler = Scheduler(model, Settings(**settings), Metrics(), thread, clock=lambda: clock[0])
            task = asyncio.get_running_loop().create_task(scheduler.run())
            try:
                yield scheduler, engine, clock
            finally:
                engine.gate.set()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    return run


async def engine_entered(engine):
    await asyncio.to_thread(engine.entered.wait, 10)


def value(scheduler, name):
    return scheduler.metrics.registry.get_sample_value(f"plaudit_{name}")


def test_what_arrives_while_the_engine_computes_goes_into_one_batch(running):
    async def scenario():
        async with running() as (scheduler, engine, _):
            first = asyncio.create_task(scheduler.compute(texts(1)))
            await engine_entered(engine)
            others = [asyncio.create_task(scheduler.compute(texts(number))) for number in (2, 3, 4)]
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
            ticket = await scheduler.compute(texts(1, 2, 13, 4, 5))
            failed = Failure(Status.FAILED, "the engine failed: RuntimeError")
            assert ticket.outcomes == [(1.0,), (2.0,), failed, (4.0,), (5.0,)]

    asyncio.run(scenario())


def test_a_request_is_admitted_whole_or_not_at_all(running):
    async def scenario():
        async with running(max_queued_sequences=3) as (scheduler, engine, _):
            first = asyncio.create_task(scheduler.compute(texts(1)))
            await engine_entered(engine)
            second = asyncio.create_task(scheduler.compute(texts(2, 3)))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="2 sequences wait, the request has 2 more, limit 3"):
                await scheduler.compute(texts(4, 5))
            with pytest.raises(TooLarge, match="4 sequences, the whole queue holds 3"):
                await scheduler.compute(texts(6, 7, 8, 9))
            engine.gate.set()
            await asyncio.gather(first, second)
            assert engine.batches == [[1], [2, 3]]

    asyncio.run(scenario())


def test_the_queue_is_bounded_in_tokens_too(running):
    async def scenario():
        async with running(max_queued_tokens=10) as (scheduler, engine, _):
            first = asyncio.create_task(scheduler.compute(texts(1)))
            await engine_entered(engine)
            second = asyncio.create_task(scheduler.compute(texts(2, length=8)))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="8 tokens wait, the request has 4 more, limit 10"):
                await scheduler.compute(texts(3))
            engine.gate.set()
            await asyncio.gather(first, second)

    asyncio.run(scenario())


def test_a_sequence_past_its_deadline_expires_without_compute(running):
    async def scenario():
        async with running() as (scheduler, engine, clock):
            first = asyncio.create_task(scheduler.compute(texts(1)))
            await engine_entered(engine)
            late = asyncio.create_task(scheduler.compute(texts(2), deadline=105.0))
            in_time = asyncio.create_task(scheduler.compute(texts(3), deadline=115.0))
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
            first = asyncio.create_task(scheduler.compute(texts(1)))
            await engine_entered(engine)
            gone = asyncio.create_task(scheduler.compute(texts(2, 3)))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            engine.gate.set()
            await first
            ticket = await scheduler.compute(texts(4))
            assert ticket.outcomes == [(4.0,)]
            assert engine.batches == [[1], [4]]
            assert value(scheduler, "cancelled_total") == 2

    asyncio.run(scenario())


def test_padding_and_computed_tokens_are_counted(running):
    async def scenario():
        async with running() as (scheduler, engine, _):
            engine.gate.set()
            await scheduler.compute([*texts(1, length=10), *texts(2, length=7)])
            assert value(scheduler, "computed_tokens_total") == 17
            assert value(scheduler, "padding_tokens_total") == 3
            assert value(scheduler, "batch_tokens_sum") == 20

    asyncio.run(scenario())
