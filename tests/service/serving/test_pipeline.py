"""Tokenization takes turns, and stops at a deadline; what the queue refuses is not tokenized."""

import asyncio
from concurrent.futures import Executor, Future

import pytest

from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.engine.engines import open_engine
from plaudit_service.engine.model import Model
from plaudit_service.errors import AllExpired, QueueFull
from plaudit_service.items import ScoreRequest, TextItem
from plaudit_service.metrics import Metrics
from plaudit_service.serving import pipeline as pipeline_module
from plaudit_service.serving.pipeline import Pipeline
from plaudit_service.serving.served_model import ServedModel

LONG = [TextItem(text="good " * 14_000)] * 4  # each of them is a step
SHORT = [TextItem(text="good")]


class OneThread(Executor):
    """Runs what it is given at once, one turn after the other, and remembers how many there were."""

    def __init__(self):
        self.num_turns = 0

    def submit(self, function, /, *args):
        self.num_turns += 1
        future = Future()
        future.set_result(function(*args))
        return future


@pytest.fixture
def make(tiny_bundle, monkeypatch):
    bundle = load_bundle(tiny_bundle(max_tokens=100_000))
    model = Model(bundle, open_engine(bundle, num_threads=1))

    def pipeline(threads, *, turn_s, clock=lambda: 0.0, scheduler=None):
        monkeypatch.setattr(pipeline_module, "_TURN_S", turn_s)
        return Pipeline(model, scheduler, Metrics(), threads, clock)

    return pipeline


def test_a_request_that_fits_a_turn_takes_one(make):
    threads = OneThread()
    tokenized = asyncio.run(make(threads, turn_s=60).tokenize(LONG))
    assert (threads.num_turns, len(tokenized.texts)) == (1, 4)


def test_a_small_request_waits_for_one_turn_of_a_large_one_and_not_for_its_end(make):
    threads, finished = OneThread(), []

    async def scenario():
        pipeline = make(threads, turn_s=0)

        async def tokenize(name, items):
            texts = (await pipeline.tokenize(items)).texts
            finished.append((name, len(texts)))

        await asyncio.gather(tokenize("large", LONG), tokenize("small", SHORT))

    asyncio.run(scenario())
    assert finished == [("small", 1), ("large", 4)]


def test_tokenization_stops_at_the_deadline(make):
    threads, now = OneThread(), iter([5.0, 9.0, 10.0])
    pipeline = make(threads, turn_s=0, clock=lambda: next(now))
    with pytest.raises(AllExpired, match="while the request was tokenized"):
        asyncio.run(pipeline.tokenize(LONG, deadline=10.0))
    assert threads.num_turns == 3


class FullQueue:
    def require_room(self, num_sequences, num_tokens=0, *, client, deadline):
        raise QueueFull(f"no room for {num_sequences} sequences")


def test_what_the_queue_would_refuse_is_not_tokenized(make):
    threads = OneThread()
    pipeline = make(threads, turn_s=0, scheduler=FullQueue())
    with pytest.raises(QueueFull, match="no room for 4 sequences"):
        asyncio.run(ServedModel([pipeline], Metrics()).score(ScoreRequest(items=LONG), deadline=10.0))
    assert threads.num_turns == 0
