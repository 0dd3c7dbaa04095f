"""What a request can name: a bundle's model, or a combination of several, scored through the pipelines of its parts.

Knows nothing of HTTP.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from plaudit_service.errors import AllExpired, QueueFull
from plaudit_service.items import ScoreRequest
from plaudit_service.metrics import Metrics
from plaudit_service.queueing.scheduler import Ticket, admit
from plaudit_service.results import Result, Status
from plaudit_service.serving.combining import Combination
from plaudit_service.serving.pipeline import Pipeline, Scored, Tokenized
from plaudit_service.serving.score_window import ScoreWindow
from plaudit_service.text.tokenization import Asked

_T = TypeVar("_T")

# The term by which a normalized score differs from the sum of its heads' terms.
NORMALIZATION = "normalization"


class ServedModel:
    """One model, or a combination: each part works on a request in its own queue, all at the same time.

    Args:
        parts: The pipeline of the model, or of each part in the combination's order.
        metrics: Where results are counted, under this model's own name.
        combination: What makes one score of the parts'; None: there is one part, whose results are answered.

    Attributes:
        identity: What answers name and requests may pin.
    """

    def __init__(self, parts: Sequence[Pipeline], metrics: Metrics, combination: Combination | None = None) -> None:
        self.parts = tuple(parts)
        self.combination = combination
        identities = [part.model.identity for part in self.parts]
        self.identity = identities[0] if combination is None else combination.identity(identities)
        self._metrics = metrics
        self._window = ScoreWindow()
        for status in Status:
            metrics.sequences.labels(self.name, str(status))  # from 0, so that the first of a kind is an increase
        metrics.score_mean.labels(self.name).set_function(self._window.mean)
        metrics.score_std.labels(self.name).set_function(self._window.std)
        metrics.score_length_correlation.labels(self.name).set_function(self._window.length_correlation)

    @property
    def name(self) -> str:
        """What requests and metrics call it."""
        return self.identity.name

    async def score(
        self,
        request: ScoreRequest,
        *,
        deadline: float = math.inf,
        client: str = "",
        waits: bool = False,
        on_admitted: Callable[[], None] = lambda: None,
    ) -> Scored:
        """Tokenize, queue and compute; of each kind of time, that of the part which took longest.

        Every part admits the whole request, or none does. The first error of a part ends the others: their sequences
        leave the queues.

        Args:
            request: What to score, and what it pins.
            deadline: Time of the parts' clock after which nobody wants the answer.
            client: Who shares queue and turns with other clients; "": one who does not.
            waits: Whether it waits where a queue is full; else it is refused.
            on_admitted: Called once all parts have queued the request; must not raise.

        Raises:
            Mismatch: the request pins another fingerprint or engine.
            InvalidRequest: an item cannot be scored by a part.
            QueueFull, TooLarge: the request is not admitted, now or ever; QueueFull only where it does not wait.
            AllExpired: the deadline passed before any sequence was computed.
            Unavailable: the engine hangs.
        """
        self.identity.check_pins(request)
        if self.combination is not None:
            self.combination.check_request(request, [part.model.bundle for part in self.parts])
        for part in self.parts:
            part.model.check_request(request)
        if not waits:
            for part in self.parts:
                part.scheduler.require_room(request.num_sequences, deadline=deadline, client=client)
        asked = Asked(request.truncation, request.along, request.explain)
        tokenized = await _gather(part.tokenize(request.items, asked, deadline=deadline) for part in self.parts)
        tickets = await self._admit(tokenized, deadline, client, waits=waits)
        on_admitted()
        first, *others = (ticket.done for ticket in tickets)
        await (asyncio.gather(first, *others) if others else first)  # cancelled, it cancels all of them
        scored = self._scored(tokenized, tickets, raw=request.raw)
        self._count(scored.results, raw=request.raw)
        if scored.results and all(result.status is Status.EXPIRED for result in scored.results):
            raise AllExpired("the deadline of X-Request-Timeout-S passed before any sequence was computed")
        return scored

    def terms(self, result: Result, *, raw: bool) -> dict[str, float] | None:
        """What adds up to a score, by head or part, from left to right; None: it is no sum of several.

        To the bits of the score, but for a bundle with a normalization: there each term is divided by its deviation,
        and what its mean takes away is a term of its own, so that the sum is the score but for its rounding.
        """
        if result.heads is None:
            return None
        if self.combination is not None:
            return self.combination.terms(result.heads)
        scoring = self.parts[0].model.bundle.scoring
        if scoring.link != "identity":
            return None
        terms = {head.name: head.weight * result.heads[head.name] for head in scoring.heads}
        if scoring.normalization is None or raw:
            return terms
        mean, std = scoring.normalization.mean, scoring.normalization.std
        return {name: term / std for name, term in terms.items()} | {_free(NORMALIZATION, terms): -mean / std}

    async def _admit(
        self, tokenized: Sequence[Tokenized], deadline: float, client: str, *, waits: bool
    ) -> list[Ticket]:
        """Queue in all parts at once; or first wait for room in one queue after the other, until all have it."""
        requests = [(part.scheduler, texts.sequences) for part, texts in zip(self.parts, tokenized, strict=True)]
        if not waits:
            return admit(requests, deadline=deadline, client=client)
        timeout_s = None if deadline == math.inf else deadline - self.parts[0].clock()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    for scheduler, sequences in requests:
                        await scheduler.wait_for_room(sequences, deadline=deadline, client=client)
                    with suppress(QueueFull):  # one was full again by the time that the last had room
                        return admit(requests, deadline=deadline, client=client)
        except TimeoutError:
            raise AllExpired("the deadline of X-Request-Timeout-S passed while the request waited for room") from None

    def _scored(self, tokenized: Sequence[Tokenized], tickets: Sequence[Ticket], *, raw: bool) -> Scored:
        scored = [
            part.scored(texts, ticket, raw=raw)
            for part, texts, ticket in zip(self.parts, tokenized, tickets, strict=True)
        ]
        if self.combination is None:
            return scored[0]
        rows = zip(*(part.results for part in scored), strict=True)
        return Scored(
            [self.combination.combine(row) for row in rows],
            max(part.queue_s for part in scored),
            max(part.tokenize_s for part in scored),
            max(part.infer_s for part in scored),
        )

    def _count(self, results: Sequence[Result], *, raw: bool) -> None:
        """Raw scores are on another scale, and not in the statistics of scores."""
        for result in results:
            self._metrics.sequences.labels(self.name, str(result.status)).inc()
            if result.truncated:
                self._metrics.truncated.inc()
            if result.score is not None and not raw:
                self._metrics.score.labels(self.name).observe(result.score)
                self._window.add(result.score, result.num_tokens)


def _free(name: str, taken: Collection[str]) -> str:
    """A name that is not taken, by underscores before it."""
    while name in taken:
        name = f"_{name}"
    return name


async def _gather(coroutines: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Await all at the same time; where one fails, the others are cancelled before its error is raised."""
    first, *others = coroutines
    if not others:  # most requests name no combination, and need no tasks
        return [await first]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in (first, *others)]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
