"""Scores from outside: sent for while the policy goes on computing, awaited as late as possible.

A scorer is any callable with the signature of `plaudit_client.RewardClient.score`: an item with several completions has
as many results, in place. One with a parameter `extra` also gets a mapping for each item: what else the row of its
prompt holds. A failure stays a failure: NaN and a False in the mask, never a number.
"""

import inspect
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from plaudit_ppo.scoring.items import Item, grouped


class Scored(Protocol):
    """What a scorer returns for one item: a status, "ok" or why not, and a score if it is "ok"."""

    @property
    def status(self) -> str: ...  # noqa: D102
    @property
    def score(self) -> float | None: ...  # noqa: D102


T = TypeVar("T")
Scorer = Callable[..., Sequence[Scored]]
Extra = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ScoredBatch:
    """The scores of some rollouts.

    Attributes:
        scores: shape (B,), float32, NaN where scoring failed.
        call_s: seconds that the calls took, added up.
        wait_s: seconds that somebody stood still for them.
        failure: what the first failed rollout says, if one failed.
        fingerprint: of the reward model, where the scorer's answer has one.
        steps: the scores of the steps of each rollout, by number, where rollouts were sent in steps.
    """

    scores: Tensor
    call_s: float
    wait_s: float = 0.0
    failure: str | None = None
    fingerprint: str | None = None
    steps: tuple[Mapping[int, float], ...] = ()

    @property
    def scored(self) -> Tensor:
        """Shape (B,), bool, True where there is a score."""
        return ~self.scores.isnan()


def ask(scorer: Scorer, items: Sequence[Item], extra: Extra) -> Sequence[Scored]:
    """The scorer's answer; it gets `extra` if it has a parameter of that name."""
    return scorer(items, extra=extra) if takes_extra(scorer) else scorer(items)


def takes_extra(scorer: Scorer) -> bool:
    """Whether a scorer reads what else the rows of the prompts hold."""
    try:
        return "extra" in inspect.signature(scorer).parameters
    except (TypeError, ValueError):  # some callables of C have none
        return False


def call_scorer(
    scorer: Scorer,
    items: Sequence[Item],
    extra: Extra = (),
    *,
    group_size: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> ScoredBatch:
    """One call; an exception of the scorer is the failure of all its items.

    Args:
        scorer: what is called.
        items: B rollouts, one completion each.
        extra: what else the row of each one's prompt holds; empty: nothing is known of it.
        group_size: so many after the other have one prompt, and are sent as one item.
        clock: seconds.
    """
    start = clock()
    fingerprint = None
    steps: list[Mapping[int, float]] = [{} for item in items if isinstance(item, Mapping) and "steps" in item]
    try:
        sent, places, firsts = grouped(items, size=group_size)
        answer = ask(scorer, sent, [extra[row] for row in firsts] if extra else ())
        fingerprint = getattr(answer, "fingerprint", None)
        results = list(answer)
        if len(results) != len(items):
            raise ValueError(f"{len(results)} results for {len(items)} rollouts")
        results = [results[place] for place in places]
        numbers = [_number(result) for result in results]
        reasons = [_reason(result) for result in results]
        if steps:
            steps = [_step_scores(result) for result in results]
            for row, (item, own) in enumerate(zip(items, steps, strict=True)):
                if not math.isnan(numbers[row]) and not own.keys() >= set(range(len(item["steps"]))):
                    numbers[row] = math.nan
                    reasons[row] = f"{len(own)} of its {len(item['steps'])} steps have a score"
    except Exception as error:  # noqa: BLE001  # a scorer is anybody's code, and its failure is its rollouts' failure
        numbers = [math.nan] * len(items)
        steps = [{} for _ in steps]
        reasons = [f"{type(error).__name__}: {error}"] * len(items)
    scores = torch.tensor(numbers, dtype=torch.float32)
    scores = scores.where(scores.isfinite(), math.nan)
    failed = scores.isnan().tolist()
    return ScoredBatch(
        scores=scores,
        call_s=clock() - start,
        failure=next((reason for reason, without in zip(reasons, failed, strict=True) if without), None),
        fingerprint=fingerprint,
        steps=tuple(steps),
    )


def _step_scores(result: Scored) -> dict[int, float]:
    """The finite scores of a result's steps, by number; RewardClient's results have them in `along`."""
    along = getattr(result, "along", None)
    if result.status != "ok" or along is None or along.steps is None:
        return {}
    return {number: score for number, score in zip(along.steps, along.scores, strict=True) if math.isfinite(score)}


def _number(result: Scored) -> float:
    return math.nan if result.status != "ok" or result.score is None else float(result.score)


def _reason(result: Scored) -> str:
    """Why a result has no score; RewardClient's results say it in `detail`."""
    status = "the score is not finite" if result.status == "ok" else result.status
    detail = getattr(result, "detail", None)
    return f"{status} ({detail})" if detail else status


def in_thread(function: Callable[[], T]) -> "Future[T]":
    """Runs a function in a thread of its own.

    The thread is a daemon, unlike those of a ThreadPoolExecutor: a call that hangs must not keep the process alive
    after Ctrl-C.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001  # or who awaits the future would wait for ever
            future.set_exception(error)

    threading.Thread(target=work, name="plaudit-ppo-scoring", daemon=True).start()
    return future


class ScoringPool:
    """Runs calls to a scorer in threads.

    Args:
        scorer: called from several threads at once.
        concurrency: how many calls may be in flight.
        group_size: so many rollouts after the other have one prompt, and are sent as one item.
    """

    def __init__(self, scorer: Scorer, concurrency: int, *, group_size: int = 1) -> None:
        self._scorer = scorer
        self._group_size = group_size
        self._slots = threading.Semaphore(concurrency)

    def submit(self, items: Sequence[Item], extra: Extra = ()) -> "Future[ScoredBatch]":
        """Starts a call, or queues it when all slots are taken, and returns at once.

        Args:
            items: the rollouts.
            extra: what else the row of each one's prompt holds.
        """

        def call() -> ScoredBatch:
            with self._slots:
                return call_scorer(self._scorer, items, extra, group_size=self._group_size)

        return in_thread(call)


def gather(pending: Sequence["Future[ScoredBatch]"], *, clock: Callable[[], float] = time.perf_counter) -> ScoredBatch:
    """Waits for all calls and joins their scores, in order; measures how long the wait was."""
    start = clock()
    batches = [future.result() for future in pending]
    return join(batches, wait_s=clock() - start)


def join(batches: Sequence[ScoredBatch], *, wait_s: float) -> ScoredBatch:
    """One batch of several, in order."""
    fingerprints = dict.fromkeys(batch.fingerprint for batch in batches if batch.fingerprint is not None)
    return ScoredBatch(
        scores=torch.cat([batch.scores for batch in batches]),
        call_s=sum(batch.call_s for batch in batches),
        wait_s=wait_s,
        failure=next((batch.failure for batch in batches if batch.failure), None),
        fingerprint=" / ".join(fingerprints) or None,  # more than one only where the reward model has changed
        steps=tuple(step for batch in batches for step in batch.steps),
    )
