"""What computes the batches of one model: threads of this process, or servers that are asked over HTTP (`remote/`).

A batch is handed over, and is on its way from then on. Knows nothing of who waits for it.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from plaudit_service.engine.engine_threads import WHOLE, EngineThreads
from plaudit_service.engine.model import Model, Outcome
from plaudit_service.text.tokenization import TokenizedText


@dataclass(frozen=True)
class Computed:
    """What became of a batch.

    Attributes:
        outcomes: Of its sequences, in order.
        is_alone: Whether nothing else was computed at the same time.
        started, finished: On the device's clock.
        num_prefix_tokens: Tokens of prefixes that were computed for it.
    """

    outcomes: Sequence[Outcome]
    is_alone: bool
    started: float
    finished: float
    num_prefix_tokens: int = 0


# What a batch is, asked when it begins: who waited may have left since it was handed over.
Batch = Callable[[], Sequence[TokenizedText]]
# A batch on its way. Who cancels it before it begins takes it back.
Call = Future[Computed]


class Device(Protocol):
    """What a queue, the check of the golden texts and the watch over it need of what computes.

    Attributes:
        num_calls: Batches at once, at most; one more may lie ready.
    """

    num_calls: int

    @property
    def num_free(self) -> int:
        """How many more batches would begin at once."""
        ...

    def start(self, batch: Batch, num_prefix_tokens: int = 0) -> Call:
        """Compute a batch after those that were given before have begun.

        Every failure is an outcome, but for `Unavailable`: there is nothing that could compute it now.

        Args:
            batch: Sequences.
            num_prefix_tokens: How many first tokens they have in common, to be computed once.
        """
        ...

    def start_continued(self, text: TokenizedText, num_prefix_tokens: int) -> Call | None:
        """Compute a sequence as the continuation of its own first tokens; None where that is not for us to choose."""
        ...

    def abandon(self, call: Call) -> None:
        """Nobody waits for a batch any more: end it where that can be done."""
        ...


class ThreadsDevice:
    """The device whose threads compute the batches of several models in turn, as one of them sees it.

    Args:
        model: The model.
        threads: Of the device.
        clock: Seconds that only grow.
    """

    def __init__(self, model: Model, threads: EngineThreads, clock: Callable[[], float] = time.monotonic) -> None:
        self.threads = threads
        self.num_calls = threads.num_calls
        self._model = model
        self._clock = clock

    @property
    def num_free(self) -> int:
        """How many more batches would begin at once."""
        return self.threads.num_free

    def start(self, batch: Batch, num_prefix_tokens: int = 0) -> Call:
        """Never raises: `Model.compute` makes failures of what the engine raises."""
        return self.threads.submit(partial(self._compute, batch, num_prefix_tokens))

    def start_continued(self, text: TokenizedText, num_prefix_tokens: int) -> Call | None:
        """As the continuation of its first tokens, where the model is causal."""
        if self._model.bundle.scoring.kind != "causal":
            return None
        return self.threads.submit(partial(self._continue, text, num_prefix_tokens))

    def abandon(self, call: Call) -> None:
        """One that has not begun is empty once it does; one that runs cannot be interrupted."""

    def _compute(self, batch: Batch, num_prefix_tokens: int, lane: int) -> Computed:
        """In a thread of the engine."""
        model = self._model
        started, before = self._clock(), model.num_computed_prefix_tokens(lane)
        outcomes = model.compute(batch(), num_prefix_tokens, lane=lane)
        num_computed = model.num_computed_prefix_tokens(lane) - before
        return Computed(outcomes, lane == WHOLE, started, self._clock(), num_computed)

    def _continue(self, text: TokenizedText, num_prefix_tokens: int, lane: int) -> Computed:
        started = self._clock()
        outcome = self._model.compute_continued(text, num_prefix_tokens, lane=lane)
        return Computed([outcome], lane == WHOLE, started, self._clock())
