"""The path of every request, and of the start-up check: tokenize, queue, compute, finish.

Knows nothing of HTTP.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from plaudit_service.combining import Combination
from plaudit_service.errors import AllExpired, InvalidRequest
from plaudit_service.metrics import Metrics
from plaudit_service.model import Model
from plaudit_service.parity import ParityReport, compare, golden_items, mixed_batches, score_mixed, score_shared
from plaudit_service.scheduler import Scheduler
from plaudit_service.score_window import ScoreWindow
from plaudit_service.tokenization import TokenizedText
from plaudit_service.wire import Identity, Item, Result, ScoreRequest, Status, TokenItem, Truncation

_T = TypeVar("_T")

# How long a request may keep a tokenizer thread before it goes to the back of the line.
_TURN_S = 0.02


@dataclass(frozen=True)
class Tokenized:
    """A request's sequences, a result in place of each that cannot be computed, and the seconds that this took."""

    texts: Sequence[TokenizedText | Result]
    seconds: float


@dataclass(frozen=True)
class Scored:
    """The results of a request, one per sequence, and where its time went, in seconds."""

    results: Sequence[Result]
    queue_s: float
    tokenize_s: float
    infer_s: float


class Answered:
    """Counts what one model answered.

    Args:
        metrics: Where results are counted.
        name: The model's name.
    """

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name
        self._window = ScoreWindow()
        for status in Status:
            metrics.sequences.labels(name, str(status))  # from 0, so that the first of a kind is an increase
        metrics.score_mean.labels(name).set_function(self._window.mean)
        metrics.score_std.labels(name).set_function(self._window.std)
        metrics.score_length_correlation.labels(name).set_function(self._window.length_correlation)

    def count(self, results: Sequence[Result], *, raw: bool) -> None:
        """Count the results of a request; raw scores are on another scale, and not in the statistics of scores."""
        for result in results:
            self._metrics.sequences.labels(self._name, str(result.status)).inc()
            if result.truncated:
                self._metrics.truncated.inc()
            if result.score is not None and not raw:
                self._metrics.score.labels(self._name).observe(result.score)
                self._window.add(result.score, result.num_tokens)


class Pipeline:
    """One model with its queue and the threads that it shares with others.

    Args:
        model: The loaded model.
        scheduler: Its queue.
        metrics: Where results are counted.
        tokenizer_threads: Run tokenization off the event loop.
        clock: Seconds that only grow; deadlines are on it.
    """

    def __init__(
        self,
        model: Model,
        scheduler: Scheduler,
        metrics: Metrics,
        tokenizer_threads: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.scheduler = scheduler
        self._metrics = metrics
        self._tokenizer_threads = tokenizer_threads
        self._clock = clock
        self.answered = Answered(metrics, model.bundle.name)

    @property
    def identity(self) -> Identity:
        """What answers name and requests may pin."""
        return self.model.identity

    async def tokenize(
        self, items: Sequence[Item], truncation: Truncation = "error", *, deadline: float = float("inf")
    ) -> Tokenized:
        """Tokenize off the event loop, in turns, so that a large request does not keep small ones waiting.

        Raises:
            InvalidRequest: an item cannot be scored by this model.
            AllExpired: the deadline passed before the end.
        """
        started = time.monotonic()
        texts: list[TokenizedText | Result] = []
        steps = self.model.tokenization.steps(items, truncation)
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(self._tokenizer_threads, _take_turn, steps, texts):
            if self._clock() >= deadline:
                raise AllExpired("the deadline of X-Request-Timeout-S passed while the request was tokenized")
        seconds = time.monotonic() - started
        self._metrics.tokenize_seconds.observe(seconds)
        return Tokenized(texts, seconds)

    async def compute(
        self, tokenized: Tokenized, *, raw: bool, deadline: float = float("inf"), bounded: bool = True
    ) -> Scored:
        """Queue what there is to compute, and make the results; `deadline` is a time of the scheduler's clock.

        Raises:
            QueueFull, TooLarge: the request is not admitted.
        """
        texts = tokenized.texts
        ticket = await self.scheduler.compute(
            [text for text in texts if isinstance(text, TokenizedText)], deadline=deadline, bounded=bounded
        )
        results = self.model.results(texts, ticket.outcomes, raw=raw)
        return Scored(results, ticket.queue_s, tokenized.seconds, ticket.infer_s)

    async def score(self, request: ScoreRequest, deadline: float, when_tokenized: Callable[[], None]) -> Scored:
        """Tokenize, call `when_tokenized`, and compute; `deadline` is a time of the scheduler's clock.

        Raises:
            RequestError: whatever `tokenize` and `compute` raise.
        """
        tokenized = await self.tokenize(request.items, request.truncation, deadline=deadline)
        when_tokenized()
        return await self.compute(tokenized, raw=request.raw, deadline=deadline)

    async def check_parity(self) -> ParityReport:
        """Score the golden texts through this very path, alone and all at once; then mixed in length, and continued."""
        items = golden_items(self.model.bundle)
        alone = [
            (await self.compute(await self.tokenize([item]), raw=True, bounded=False)).results[0] for item in items
        ]
        tokenized = await self.tokenize(items)
        batched = (await self.compute(tokenized, raw=True, bounded=False)).results
        model, texts, engine_thread = self.model, tokenized.texts, self.scheduler.engine_thread
        mixed = score_mixed(model, texts, [])
        shared: list[Result | None] = []
        # A job for each call: the watchdog takes a long job for a hung one.
        for batch in mixed_batches(texts):
            mixed |= await asyncio.wrap_future(engine_thread.submit(partial(score_mixed, model, texts, [batch])))
        for text in texts:
            shared += await asyncio.wrap_future(engine_thread.submit(partial(score_shared, model, [text])))
        return compare(
            self.model,
            tokenized.texts,
            alone=alone,
            batched=batched,
            mixed=mixed,
            shared=shared,
            engine_failures=self.model.num_engine_failures,
        )


class CombinedPipeline:
    """A combination: each part tokenizes and computes a request in its own queue, all at the same time.

    Args:
        combination: The name and the formula.
        parts: The pipelines of its parts, in its order.
        metrics: Where results are counted.
    """

    def __init__(self, combination: Combination, parts: Sequence[Pipeline], metrics: Metrics) -> None:
        self.combination = combination
        self.parts = tuple(parts)
        self.answered = Answered(metrics, combination.name)
        self._same_ids = len({part.model.bundle.scoring.sha256["tokenizer.json"] for part in parts}) == 1

    @property
    def identity(self) -> Identity:
        """What answers name and requests may pin."""
        return self.combination.identity([part.identity for part in self.parts])

    async def score(self, request: ScoreRequest, deadline: float, when_tokenized: Callable[[], None]) -> Scored:
        """As `Pipeline.score`; of each kind of time, that of the part which took longest.

        The first error of a part ends the others: their sequences leave the queues.

        Raises:
            InvalidRequest: token ids for parts with different tokenizers, or an item that a part cannot score.
            RequestError: whatever else `Pipeline.score` raises.
        """
        for number, item in enumerate(request.items):
            if isinstance(item, TokenItem) and not self._same_ids:
                parts = ", ".join(self.combination.parts)
                raise InvalidRequest(
                    f"items[{number}].token_ids: the parts ({parts}) have different tokenizers; send text instead"
                )
        tokenized = await _gather(
            part.tokenize(request.items, request.truncation, deadline=deadline) for part in self.parts
        )
        when_tokenized()
        scored = await _gather(
            part.compute(texts, raw=request.raw, deadline=deadline)
            for part, texts in zip(self.parts, tokenized, strict=True)
        )
        rows = zip(*(part.results for part in scored), strict=True)
        return Scored(
            [self.combination.combine(row) for row in rows],
            max(part.queue_s for part in scored),
            max(part.tokenize_s for part in scored),
            max(part.infer_s for part in scored),
        )


async def _gather(coroutines: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Await all at the same time; where one fails, the others are cancelled before its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _take_turn(steps: Iterator[list[TokenizedText | Result]], texts: list[TokenizedText | Result]) -> bool:
    """Take tokenization steps for a while; whether there are more."""
    end = time.monotonic() + _TURN_S
    for step in steps:
        texts += step
        if time.monotonic() >= end:
            return True
    return False
