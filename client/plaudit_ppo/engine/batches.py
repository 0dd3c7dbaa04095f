"""Which rollout batch is sampled when, and by which version of the policy."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from plaudit_ppo.errors import EngineError
from plaudit_ppo.models.kept_weights import KeptWeights
from plaudit_ppo.rollout.rollouts import Rollouts
from plaudit_ppo.rollout.samplers import Sampler

PromptIds = Sequence[Sequence[int]]


class RolloutBatches:
    """Rollout batches, one for each iteration; version v is the policy after v iterations.

    In turn, batch k is sampled by version k, which learns from it. Ahead, batch k + 1 is asked for before version k
    begins to learn from batch k: it is sampled by version k meanwhile, and version k + 1 learns from it. The weights
    that it was sampled by are kept, for the logprobs of its tokens. The first batch of a run is sampled in turn.

    Noukhovitch et al. 2024, "Asynchronous RLHF", arXiv 2410.18252: one step off-policy.

    Args:
        sampler: samples them; ahead of their turn, it must not use the policy in this process.
        prompt_ids: of this process, for an iteration.
        iterations: of the run.
        kept: of the policy: the version before, once there is one.
        as_sampled: inside, the policy is that version.
        is_ahead: whether batches are sampled ahead.

    Attributes:
        version: that sampled the last batch.
        publish_s: seconds for publishing since the last batch was asked for here.
        wait_s: seconds that somebody stood still for the last batch.
    """

    def __init__(
        self,
        sampler: Sampler,
        prompt_ids: Callable[[int], PromptIds],
        *,
        iterations: int,
        kept: KeptWeights,
        as_sampled: Callable[[], AbstractContextManager[None]],
        is_ahead: bool,
    ) -> None:
        self.version = 0
        self.publish_s = 0.0
        self.wait_s = 0.0
        self._sampler = sampler
        self._prompt_ids = prompt_ids
        self._iterations = iterations
        self._kept = kept
        self._as_sampled = as_sampled
        self._is_ahead = is_ahead
        self._published = 0
        self._begun: Iterator[Rollouts] | None = None
        self._stack = ExitStack()  # what a batch that was begun holds open

    def close(self) -> None:
        """Gives up a batch that was begun."""
        self._begun = None
        self._stack.close()

    def settle(self) -> None:
        """Awaits a batch that was begun, before engines get other weights; what it failed with, `sampled` raises."""
        if self._begun is not None:
            self._begun = _settled(self._begun)

    @contextmanager
    def sampled(self, iteration: int) -> Iterator[Iterator[Rollouts]]:
        """Yields the batch of an iteration, a micro-batch at a time; all processes have to ask for it.

        Raises:
            EngineError: an engine gave no completion, or has other weights than it was given.
            DivergenceError: the policy gives no probabilities but NaN.
        """
        self.publish_s = 0.0
        if self._begun is None:
            self._begin_run(iteration)
        assert self._begun is not None
        self.version = self._published
        start = time.perf_counter()
        try:
            yield self._begun
        finally:
            self.close()
        self.wait_s = time.perf_counter() - start

    def go_on(self, iteration: int) -> None:
        """Begins the batch after this iteration's where it is sampled ahead; all processes have to call it.

        Raises:
            EngineError: an engine did not take the policy's weights.
            DivergenceError: the policy gives no probabilities but NaN.
        """
        if self._is_ahead and iteration + 1 < self._iterations:
            if self._published != iteration:
                self._publish(iteration)
            self._begin(iteration + 1)

    def _begin_run(self, iteration: int) -> None:
        """The first batch: of a resumed run that sampled ahead, by the version that had been sampling it."""
        if self._is_ahead and self._kept.exist:
            with self._as_sampled():
                self._publish(iteration - 1)
        else:
            self._publish(iteration)
        self._begin(iteration)

    def _publish(self, version: int) -> None:
        start = time.perf_counter()
        self._sampler.publish(version)
        self._published = version
        self.publish_s += time.perf_counter() - start

    def _begin(self, iteration: int) -> None:
        batch = self._sampler.sampling(self._prompt_ids(iteration), iteration=iteration)
        self._begun = self._stack.enter_context(batch)


def _settled(batch: Iterator[Rollouts]) -> Iterator[Rollouts]:
    """A batch that is there, or its failure in its place."""
    done: list[Rollouts] = []
    failure: EngineError | None = None
    try:
        done.extend(batch)
    except EngineError as error:
        failure = error

    def again() -> Iterator[Rollouts]:
        yield from done
        if failure is not None:
            raise failure

    return again()
