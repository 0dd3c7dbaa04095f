"""Where completions come from: what the loop asks for, and the sampler that is the policy in this process.

The other sampler, an engine behind HTTP, is in the wing `engine`.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Protocol

import torch
from torch import nn

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.rollout.completion_text import StopStrings
from plaudit_ppo.rollout.prompts import pad_left
from plaudit_ppo.rollout.rollouts import Rollouts
from plaudit_ppo.rollout.sampling import sample_rollouts
from plaudit_ppo.rollout.seeding import seeded_generator


class Sampler(Protocol):
    """Samples completions of the policy; all processes of a run call the same methods in the same order.

    Attributes:
        canary_error: largest |ratio - 1| between an engine and the training forward at the last publish; None: there
            is no engine.
        retries: requests to engines that this process has sent a second time so far; None: likewise.
        generate_s: seconds that the last batch took, to its last completion.
    """

    canary_error: float | None
    retries: int | None
    generate_s: float

    def publish(self, version: int) -> None:
        """Has what is sampled from now on come from the policy as it is.

        Args:
            version: how many iterations the policy has been trained for.

        Raises:
            EngineError: an engine did not take it.
            DivergenceError: the policy gives no probabilities but NaN.
        """

    def sampling(
        self, prompt_ids: Sequence[Sequence[int]], *, iteration: int
    ) -> AbstractContextManager[Iterator[Rollouts]]:
        """Completions of this process's prompts, a micro-batch at a time, in order, each as soon as it exists.

        An engine begins when the block is entered; what it has not done when the block is left is given up.

        Args:
            prompt_ids: one prompt for each rollout.
            iteration: what they are for; with the run's seed it decides all that is random.

        Raises:
            EngineError: in the iteration: an engine gave none.
            DivergenceError: likewise: the policy gives no probabilities but NaN.
        """

    def sample_held_out(self, prompt_ids: Sequence[Sequence[int]], *, greedy: bool) -> Generator[Rollouts, None, None]:
        """Completions of held-out prompts, by random numbers of their own that are the same each time.

        Args:
            prompt_ids: as many in each process.
            greedy: the likeliest tokens instead of sampled ones.

        Raises:
            EngineError: an engine gave none.
            DivergenceError: the policy gives no probabilities but NaN.
        """


class LocalSampler:
    """Samples by the policy in this process, one micro-batch after the other from one random sequence.

    Args:
        config: for the limits and the seed.
        generating: inside it, the policy is whole and may be called; `Learner.generating`.
        eos_ids: each ends a completion.
        pad_id: written after the EOS.
        stop: what ends a completion besides; None: nothing.
        device: of this process.
        rank: number of this process.
    """

    def __init__(
        self,
        config: PPOConfig,
        generating: Callable[[], AbstractContextManager[nn.Module]],
        *,
        eos_ids: Sequence[int],
        pad_id: int,
        stop: StopStrings | None = None,
        device: torch.device,
        rank: int,
    ) -> None:
        self.canary_error: float | None = None
        self.retries: int | None = None
        self.generate_s = 0.0
        self._config = config
        self._generating = generating
        self._eos_ids = eos_ids
        self._pad_id = pad_id
        self._stop = stop
        self._device = device
        self._rank = rank

    def publish(self, version: int) -> None:
        """Nothing to do: the policy that samples is the one that trains."""

    @contextmanager
    def sampling(self, prompt_ids: Sequence[Sequence[int]], *, iteration: int) -> Iterator[Iterator[Rollouts]]:
        """As `Sampler.sampling`, one micro-batch each time that one is asked for."""
        start = time.perf_counter()
        counters = (iteration, self._rank) if self._rank else (iteration,)
        generator = seeded_generator(self._device, self._config.seed, "sampling", *counters)
        with closing(self._complete(prompt_ids, generator, greedy=False)) as rollouts:
            yield rollouts
        self.generate_s = time.perf_counter() - start

    def sample_held_out(self, prompt_ids: Sequence[Sequence[int]], *, greedy: bool) -> Generator[Rollouts, None, None]:
        """As `Sampler.sample_held_out`."""
        generator = seeded_generator(self._device, self._config.seed, "held-out sampling", self._rank)
        return self._complete(prompt_ids, generator, greedy=greedy)

    def _complete(
        self, prompt_ids: Sequence[Sequence[int]], generator: torch.Generator, *, greedy: bool
    ) -> Generator[Rollouts, None, None]:
        config = self._config
        with self._generating() as policy:
            for first in range(0, len(prompt_ids), config.rollout_micro_batch_size):
                ids, mask = pad_left(prompt_ids[first : first + config.rollout_micro_batch_size], self._pad_id)
                yield sample_rollouts(
                    policy,
                    ids.to(self._device),
                    mask.to(self._device),
                    max_tokens=config.max_completion_tokens,
                    temperature=config.temperature,
                    eos_ids=self._eos_ids,
                    pad_id=self._pad_id,
                    generator=generator,
                    stop=self._stop,
                    greedy=greedy,
                )
