"""Held-out evaluation: the policy as it is completes prompts that it is not trained on, and the scorers judge it.

Changes no weight and draws from no random sequence of the training.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.collectives import share
from plaudit_ppo.errors import CheckpointError
from plaudit_ppo.rollout.prompts import EncodedPrompts
from plaudit_ppo.rollout.rollouts import Rollouts
from plaudit_ppo.rollout.samplers import Sampler
from plaudit_ppo.scoring.pool import Scorer, gather
from plaudit_ppo.training import guards
from plaudit_ppo.training.gathering import gather_scored
from plaudit_ppo.training.held_out import (
    Evaluation,
    as_list,
    as_tensor,
    best_evaluation,
    held_out_metrics,
)
from plaudit_ppo.training.sending import Sending, Sent

_log = logging.getLogger(__name__)


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
        self._accelerator = accelerator
        chosen = evenly_spread(len(encoded.prompts), config.max_eval_prompts)
        self._prompts = [encoded.prompts[index] for index in chosen]
        self._prompt_ids = [encoded.ids[index] for index in chosen]
        self._sending = Sending(config, tokenizer, accelerator, scorer=scorer, eval_scorer=eval_scorer)
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
                "evaluations.jsonl: eval_prompts, eval_decoding, max_eval_prompts or max_completion_tokens have "
                "changed since the run began, so the evaluations cannot be compared; set the old values, or start a "
                "new run"
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
        eval_scored = self._sending.eval_scored(completed)
        scores = scored.scores[:count]
        metrics = held_out_metrics(
            scores=scores,
            eval_scores=None if eval_scored is None else eval_scored.scores[:count],
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

    def _complete(self) -> list[Sent]:
        """Completes this process's share of the prompts."""
        own = share(self._accelerator, _filled_up(range(len(self._prompts)), self._accelerator.num_processes))
        greedy = self._config.eval_decoding == "greedy"
        sampled = self._sampler.sample_held_out([self._prompt_ids[index] for index in own], greedy=greedy)
        return self._sending.send_all([self._prompts[index] for index in own], closing(sampled))

    def _kl(self, rollouts: Rollouts) -> Tensor:
        """Shape (B,), float32, nats."""
        logprobs, ref_logprobs = self._evaluate(rollouts)
        return (logprobs - ref_logprobs).where(rollouts.completion_mask, 0.0).sum(1)

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
