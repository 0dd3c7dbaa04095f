"""The path of every request to one bundle, and of the start-up check: tokenize, queue, compute, finish.

Knows nothing of HTTP.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, partial

from plaudit_service.engine.device import Call, Device
from plaudit_service.engine.model import RewardModel
from plaudit_service.errors import AllExpired, TooLarge
from plaudit_service.items import Item
from plaudit_service.metrics import Metrics
from plaudit_service.queueing.scheduler import Scheduler, Ticket
from plaudit_service.results import Result
from plaudit_service.serving.parity import (
    ParityReport,
    compare,
    golden_items,
    mixed_batches,
    with_references_along,
)
from plaudit_service.text.tokenization import Asked, TokenizedText

# How long a request may keep a tokenizer thread before it goes to the back of the line.
_TURN_S = 0.02


@dataclass(frozen=True)
class Tokenized:
    """A request's sequences, a result in place of each that cannot be computed, and the seconds that this took."""

    texts: Sequence[TokenizedText | Result]
    seconds: float

    @cached_property
    def sequences(self) -> list[TokenizedText]:
        """What is to be computed."""
        return [text for text in self.texts if isinstance(text, TokenizedText)]


@dataclass(frozen=True)
class Scored:
    """The results of a request, one per sequence, and where its time went, in seconds."""

    results: Sequence[Result]
    queue_s: float
    tokenize_s: float
    infer_s: float


class Pipeline:
    """One bundle with its queue and the threads that it shares with others.

    Args:
        model: The loaded model.
        scheduler: Its queue.
        metrics: Where results are counted.
        tokenizer_threads: Run tokenization off the event loop.
        clock: Seconds that only grow; deadlines are on it.
        max_along_tokens: Of one request, tokens that values along its texts may be asked for.
    """

    def __init__(
        self,
        model: RewardModel,
        scheduler: Scheduler,
        metrics: Metrics,
        tokenizer_threads: Executor,
        clock: Callable[[], float] = time.monotonic,
        max_along_tokens: float = math.inf,
    ) -> None:
        self.model = model
        self.scheduler = scheduler
        self._metrics = metrics
        self._tokenizer_threads = tokenizer_threads
        self.clock = clock
        self._max_along_tokens = max_along_tokens

    async def tokenize(
        self,
        items: Sequence[Item],
        asked: Asked = Asked(),  # noqa: B008  a value
        *,
        deadline: float = float("inf"),
    ) -> Tokenized:
        """Tokenize off the event loop, in turns, so that a large request does not keep small ones waiting.

        Raises:
            InvalidRequest: an item cannot be scored by this model.
            AllExpired: the deadline passed before the end.
            TooLarge: values are asked for at too many tokens.
        """
        started = time.monotonic()
        texts: list[TokenizedText | Result] = []
        steps = self.model.tokenization.steps(items, asked)
        loop = asyncio.get_running_loop()
        has_more, num_along = True, 0
        while has_more:
            before = len(texts)
            has_more = await loop.run_in_executor(self._tokenizer_threads, _take_turn, steps, texts)
            num_along += sum(map(_num_along, texts[before:]))
            if num_along > self._max_along_tokens:
                raise TooLarge(f"the request asks for values along more than {self._max_along_tokens} tokens; split it")
            if has_more and self.clock() >= deadline:
                raise AllExpired("the deadline of X-Request-Timeout-S passed while the request was tokenized")
        seconds = time.monotonic() - started
        self._metrics.tokenize_seconds.observe(seconds)
        return Tokenized(texts, seconds)

    def scored(self, tokenized: Tokenized, ticket: Ticket, *, raw: bool) -> Scored:
        """The results of a request whose sequences were computed."""
        results = self.model.results(tokenized.texts, ticket.outcomes, raw=raw)
        return Scored(results, ticket.queue_s, tokenized.seconds, ticket.infer_s)

    async def check_parity(self, device: Device | None = None) -> ParityReport:
        """Score the golden texts through this very path, alone and all at once; then mixed in length, and continued.

        Args:
            device: What computes them, whatever waits; None: through the queue, what computes all that is in it.

        Raises:
            InvalidRequest: a golden text cannot be scored.
            Unavailable: there is no engine that could compute them.
        """
        score = self._through_queue if device is None else partial(self._on, device)
        device = device or self.scheduler.device
        items = golden_items(self.model.bundle)
        alone = [(await score(await self.tokenize([item])))[0] for item in items]
        tokenized = await self.tokenize(items)
        batched = await score(tokenized)
        model, texts = self.model, tokenized.texts
        # A call for each: the watchdog takes a long one for a hung one. All are begun before the first is awaited, so
        # that several are computed at once where the engine does that.
        mixing = [(batch, device.start(partial(_picked, texts, batch))) for batch in mixed_batches(texts)]
        sharing = [_continued(device, text) for text in texts]
        checking = [
            (place, await self._start_along(device, item)) for place, item in with_references_along(model.bundle)
        ]
        mixed = {place: text for place, text in enumerate(texts) if isinstance(text, Result)}
        for batch, call in mixing:
            outcomes = (await asyncio.wrap_future(call)).outcomes
            for place, sequence, outcome in zip(batch, _picked(texts, batch), outcomes, strict=True):
                mixed[place] = model.result(sequence, outcome, raw=True)
        shared: list[Result | None] = []
        for text, continued in zip(texts, sharing, strict=True):
            if continued is None or isinstance(text, Result):
                shared.append(None)
            else:
                (outcome,) = (await asyncio.wrap_future(continued)).outcomes
                shared.append(model.result(text, outcome, raw=True))
        along = {
            place: None if call is None else (await asyncio.wrap_future(call)).outcomes[0] for place, call in checking
        }
        return compare(
            model,
            texts,
            alone=alone,
            batched=batched,
            mixed=mixed,
            shared=shared,
            along=along,
            engine_failures=model.num_engine_failures,
        )

    async def _start_along(self, device: Device, item: Item) -> Call | None:
        """A text on its way with values at each of its tokens; None where there are none for it."""
        if self.model.engine.lacks_along is not None:
            return None
        tokenize = partial(self.model.tokenization.tokenize, [item], Asked(along="tokens"))
        (text,) = await asyncio.get_running_loop().run_in_executor(self._tokenizer_threads, tokenize)
        return device.start(lambda: [text]) if isinstance(text, TokenizedText) else None

    async def scored_on(self, device: Device, items: Sequence[Item]) -> Sequence[Result]:
        """Raw results of one call to one device, whatever waits."""
        return await self._on(device, await self.tokenize(items))

    async def _on(self, device: Device, tokenized: Tokenized) -> Sequence[Result]:
        computed = await asyncio.wrap_future(device.start(lambda: tokenized.sequences))
        indexes = [text.index for text in tokenized.sequences]
        outcomes = dict(zip(indexes, computed.outcomes, strict=True))
        return self.model.results(tokenized.texts, outcomes, raw=True)

    async def _through_queue(self, tokenized: Tokenized) -> Sequence[Result]:
        """Raw results, whatever waits in the queue or is known already."""
        ticket = self.scheduler.submit(tokenized.sequences, may_be_known=False)
        await ticket.done
        return self.scored(tokenized, ticket, raw=True).results


def _picked(texts: Sequence[TokenizedText | Result], places: Sequence[int]) -> list[TokenizedText]:
    return [text for place in places if isinstance(text := texts[place], TokenizedText)]


def _continued(device: Device, text: TokenizedText | Result) -> Call | None:
    """A sequence on its way as the continuation of its own first half; None where that cannot be done."""
    if not isinstance(text, TokenizedText) or len(text.token_ids) < 2:
        return None
    return device.start_continued(text, len(text.token_ids) // 2)


def _num_along(text: TokenizedText | Result) -> int:
    """At how many tokens a value is asked for."""
    return len(text.places.rows) if isinstance(text, TokenizedText) and text.places is not None else 0


def _take_turn(steps: Iterator[list[TokenizedText | Result]], texts: list[TokenizedText | Result]) -> bool:
    """Take tokenization steps for a while; whether there are more."""
    end = time.monotonic() + _TURN_S
    for step in steps:
        texts += step
        if time.monotonic() >= end:
            return True
    return False
