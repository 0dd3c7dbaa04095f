"""Rollouts on their way to the scorers: each micro-batch is sent as soon as it has been sampled."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.collectives import raise_any
from plaudit_ppo.errors import DivergenceError, EngineError
from plaudit_ppo.rollout.prompts import Prompt
from plaudit_ppo.rollout.rollouts import Rollouts
from plaudit_ppo.scoring.items import Item, to_items
from plaudit_ppo.scoring.pool import ScoredBatch, Scorer, ScoringPool, gather
from plaudit_ppo.scoring.steps import Steps, place_step_scores, step_ends, to_step_items, to_steps
from plaudit_ppo.training.experience import StepScores
from plaudit_ppo.training.gathering import gather_scored


@dataclass(frozen=True)
class Sent:
    """A micro-batch of rollouts whose scores are on their way."""

    prompts: Sequence[Prompt]
    items: Sequence[Item]
    rollouts: Rollouts
    scores: "Future[ScoredBatch]"
    eval_scores: "Future[ScoredBatch] | None"
    steps: Sequence[Steps] = ()


class Sending:
    """Sends rollouts to the scorer that is trained on, and to the one that is not.

    Args:
        config: limits, and how rollouts become items.
        tokenizer: the policy's.
        accelerator: of the run.
        scorer: that is trained on.
        eval_scorer: that is not; None: there is none.
        group_size: so many rollouts after the other have one prompt.
    """

    def __init__(
        self,
        config: PPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        *,
        scorer: Scorer,
        eval_scorer: Scorer | None,
        group_size: int = 1,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._accelerator = accelerator
        calls = config.scorer_concurrency
        self._in_steps = config.reward_along == "steps"  # an item has one completion in steps
        self._pool = ScoringPool(scorer, calls, group_size=1 if self._in_steps else group_size)
        self._eval_pool = ScoringPool(eval_scorer, calls, group_size=group_size) if eval_scorer else None

    def send_all(self, prompts: Sequence[Prompt], sampling: AbstractContextManager[Iterator[Rollouts]]) -> list[Sent]:
        """Sends the rollouts of this process; what fails in one process is raised in all.

        Args:
            prompts: of each rollout.
            sampling: inside, the rollouts, a micro-batch at a time.

        Raises:
            EngineError: an engine failed.
            DivergenceError: the policy gives no probabilities but NaN.
        """
        size = self._config.rollout_micro_batch_size
        failure: DivergenceError | EngineError | None = None
        sent: list[Sent] = []
        try:
            with sampling as sampled:
                for first, rollouts in zip(range(0, len(prompts), size), sampled, strict=True):
                    sent.append(self._send(prompts[first : first + size], rollouts))
        except (DivergenceError, EngineError) as error:
            failure = error
        raise_any(self._accelerator, failure)
        return sent

    def eval_scored(self, sent: Sequence[Sent]) -> ScoredBatch | None:
        """What the scorer that is not trained on gave, of all processes; None: there is none."""
        if self._eval_pool is None:
            return None
        return gather_scored(self._accelerator, gather([part.eval_scores for part in sent if part.eval_scores]))

    def step_scores(self, sent: Sequence[Sent], scored: ScoredBatch, rollouts: Rollouts) -> StepScores | None:
        """The scores of the steps of this process's rollouts, where they are what is rewarded."""
        if not self._in_steps:
            return None
        steps = [each for part in sent for each in part.steps]
        shape = rollouts.completion_ids.shape[1], self._accelerator.device
        return StepScores(place_step_scores(scored.steps, steps, *shape), step_ends(steps, *shape))

    def _send(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Sent:
        config = self._config
        items = to_items(rollouts, prompts, self._tokenizer, send_eos_text=config.send_eos_text, stop=config.stop)
        extra = [prompt.columns for prompt in prompts]
        eval_scores = self._eval_pool.submit(items, extra) if self._eval_pool else None
        if not self._in_steps:
            return Sent(prompts, items, rollouts, self._pool.submit(items, extra), eval_scores)
        steps = to_steps(rollouts, self._tokenizer, config.step_separator, stop=config.stop)
        scores = self._pool.submit(to_step_items(prompts, steps), extra)
        return Sent(prompts, items, rollouts, scores, eval_scores, steps)
