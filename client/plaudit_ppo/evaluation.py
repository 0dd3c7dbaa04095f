"""Held-out evaluation: the policy as it is completes prompts that it is not trained on, and the scorers judge it.

Changes no weight and draws from no random sequence of the training.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.collectives import raise_any, share
from plaudit_ppo.errors import CheckpointError, DivergenceError, EngineError
from plaudit_ppo.rollout.prompts import EncodedPrompts
from plaudit_ppo.rollout.rollouts import Rollouts
from plaudit_ppo.rollout.samplers import Sampler
from plaudit_ppo.scoring.items import to_items
from plaudit_ppo.scoring.pool import ScoredBatch, Scorer, ScoringPool, gather
from plaudit_ppo.training import guards
from plaudit_ppo.training.gathering import gather_scored
from plaudit_ppo.training.held_out import (
    Evaluation,
    as_list,
    as_tensor,
    best_evaluation,
    held_out_metrics,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Completed:
    """Completions whose scores are on their way."""

    rollouts: Rollouts
    scores: "Future[ScoredBatch]"
    eval_scores: "Future[ScoredBatch] | None"


class HeldOut:
    """Evaluates the policy on held-out prompts, and knows the evaluations of the run so far.

    Args:
        config: limits, and how prompts are completed.
        encoded: the held-out prompts, of which at most `max_eval_prompts` are used, evenly spread.
        sampler: of the run.
        evaluate: logprobs of policy and reference for rollouts, each shape (B, T), float32.
        tokenizer: the policy's.
        accelerator: of the run.
        scorer: that is trained on.
        eval_scorer: that is not; None: there is none.
    """

    def __init__(
        self,
        config: PPOConfig,
        encoded: EncodedPrompts,
        *,
        sampler: Sampler,
        evaluate: Callable[[Rollouts], tuple[Tensor, Tensor]],
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        scorer: Scorer,
        eval_scorer: Scorer | None,
    ) -> None:
        self._config = config
        self._sampler = sampler
        self._evaluate = evaluate
        self._tokenizer = tokenizer
        self._accelerator = accelerator
        chosen = evenly_spread(len(encoded.prompts), config.max_eval_prompts)
        self._prompts = [encoded.prompts[index] for index in chosen]
        self._prompt_ids = [encoded.ids[index] for index in chosen]
        self._pool = ScoringPool(scorer, config.scorer_concurrency)
        self._eval_pool = ScoringPool(eval_scorer, config.scorer_concurrency) if eval_scorer else None
        what = [self._prompt_ids, config.eval_decoding, config.max_completion_tokens]
        self._hash = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        self._evaluations: list[Evaluation] = []

    def go_on(self, evaluations: Sequence[Evaluation]) -> None:
        """Takes the evaluations that a continued run has behind it.

        Raises:
            CheckpointError: they are of other prompts, or the prompts were completed in another way.
        """
        if any(line.get("prompts_hash") != self._hash for line in evaluations):
            raise CheckpointError(
                "evaluations.jsonl: the run had other eval_prompts, or another eval_decoding, max_eval_prompts or "
                "max_completion_tokens, so its evaluations cannot be compared; give the former ones, or start a new run"
            )
        self._evaluations = list(evaluations)

    def is_due(self, iteration: int) -> bool:
        """Whether the policy after so many iterations is to be evaluated and has not been."""
        at_end = iteration == self._config.iterations
        is_known = any(line["iteration"] == iteration for line in self._evaluations)
        return (at_end or iteration % self._config.eval_every == 0) and not is_known

    @property
    def best(self) -> int | None:
        """After how many iterations the policy was best; None: no trained one was evaluated."""
        best = best_evaluation(self._evaluations)
        return None if best is None else int(best["iteration"])

    def run(self, iteration: int, *, fingerprint: str | None) -> Evaluation:
        """Evaluates the policy as it is; all processes have to take part, and get the same.

        Args:
            iteration: how many are done.
            fingerprint: of the reward model so far; None: not known.

        Raises:
            GuardError: too many completions got no score, or the reward model is another one.
            EngineError: an engine failed.
        """
        begin, count = time.perf_counter(), len(self._prompts)
        self._sampler.publish(iteration)
        completed = self._complete()
        kl = torch.cat([self._kl(part.rollouts) for part in completed])
        lengths = torch.cat([part.rollouts.completion_mask.sum(1) for part in completed])
        finished = torch.cat([part.rollouts.finished for part in completed])
        kl, lengths, finished = (self._accelerator.gather(part)[:count].cpu() for part in (kl, lengths, finished))
        scored = gather_scored(self._accelerator, gather([part.scores for part in completed]))
        scores = scored.scores[:count]
        metrics = held_out_metrics(
            scores=scores,
            eval_scores=self._eval_scores(completed),
            start_scores=scores if iteration == 0 else self._start_scores,
            kl=kl,
            lengths=lengths,
            finished=finished,
        )
        guards.check_reward_model(scored.fingerprint, known=fingerprint)
        masked_share = metrics["heldout/masked_share"] or 0.0
        guards.check_masked_share(masked_share, limit=self._config.max_masked_share, failure=scored.failure)
        evaluation: Evaluation = {
            "iteration": iteration,
            **metrics,
            "time/heldout_s": time.perf_counter() - begin,
            "scores": as_list(scores),
            "prompts_hash": self._hash,
        }
        self._evaluations.append(evaluation)
        return evaluation

    def _complete(self) -> list[_Completed]:
        """Completes this process's share of the prompts; each micro-batch goes to the scorers as soon as it exists."""
        size = self._config.rollout_micro_batch_size
        own = share(self._accelerator, _filled_up(range(len(self._prompts)), self._accelerator.num_processes))
        greedy = self._config.eval_decoding == "greedy"
        completed: list[_Completed] = []
        failure: DivergenceError | EngineError | None = None
        prompt_ids = [self._prompt_ids[index] for index in own]
        try:
            with closing(self._sampler.sample_held_out(prompt_ids, greedy=greedy)) as sampled:
                for first, rollouts in zip(range(0, len(own), size), sampled, strict=True):
                    completed.append(self._send(own[first : first + size], rollouts))
        except (DivergenceError, EngineError) as error:
            failure = error
        raise_any(self._accelerator, failure)
        return completed

    def _send(self, indices: Sequence[int], rollouts: Rollouts) -> _Completed:
        config, prompts = self._config, [self._prompts[index] for index in indices]
        items = to_items(rollouts, prompts, self._tokenizer, send_eos_text=config.send_eos_text, stop=config.stop)
        extra = [prompt.columns for prompt in prompts]
        eval_scores = self._eval_pool.submit(items, extra) if self._eval_pool else None
        return _Completed(rollouts, self._pool.submit(items, extra), eval_scores)

    def _kl(self, rollouts: Rollouts) -> Tensor:
        """Shape (B,), float32, nats."""
        logprobs, ref_logprobs = self._evaluate(rollouts)
        return (logprobs - ref_logprobs).where(rollouts.completion_mask, 0.0).sum(1)

    def _eval_scores(self, completed: Sequence[_Completed]) -> Tensor | None:
        if self._eval_pool is None:
            return None
        scored = gather([part.eval_scores for part in completed if part.eval_scores])
        return gather_scored(self._accelerator, scored).scores[: len(self._prompts)]

    @property
    def _start_scores(self) -> Tensor | None:
        """Of the start policy; None where the run has begun without evaluations."""
        start = next((line for line in self._evaluations if line["iteration"] == 0), None)
        return None if start is None else as_tensor(start["scores"])


def warn_of_training_prompts(prompt_ids: Sequence[list[int]], held_out_ids: Sequence[list[int]]) -> None:
    """Logs how many held-out prompts are also prompts of the training."""
    held_out = {tuple(ids) for ids in held_out_ids}
    shared = held_out.intersection(map(tuple, prompt_ids))
    if shared:
        _log.warning(
            "%d of %d held-out prompts (eval_prompts) are also prompts of the training", len(shared), len(held_out)
        )


def evenly_spread(count: int, limit: int) -> list[int]:
    """At most `limit` of the numbers below `count`, evenly spread over them."""
    chosen = min(count, limit)
    return [number * count // chosen for number in range(chosen)]


def _filled_up(indices: Sequence[int], processes: int) -> list[int]:
    """The indices, and the first of them again, so often that each process has as many as the others."""
    missing = -len(indices) % processes
    return [*indices, *(indices[number % len(indices)] for number in range(missing))]
