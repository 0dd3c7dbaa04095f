"""The PPO loop, in the order of the paper: sample, evaluate, score, reward, advantage, update.

Ouyang et al. 2022, arXiv 2203.02155; Huang et al. 2024, arXiv 2403.17031. Holds the models, the clock and the files;
what is computed is in the modules that it calls.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plaudit_ppo.algorithm.kl import next_kl_coef
from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.collectives import gather_sum, largest, share
from plaudit_ppo.distributed.learner_setup import make_learner, prepare_reference
from plaudit_ppo.distributed.processes import make_accelerator
from plaudit_ppo.engine.batches import RolloutBatches
from plaudit_ppo.engine.sampler import EngineSampler
from plaudit_ppo.errors import ConfigError, EngineError, GuardError, PPOError
from plaudit_ppo.evaluation import HeldOut, warn_of_training_prompts
from plaudit_ppo.models.critic import Critic, TrunkCritic
from plaudit_ppo.models.kept_weights import KeptWeights
from plaudit_ppo.models.lora import AdapterOff, is_lora
from plaudit_ppo.models.policy import check_cache
from plaudit_ppo.rollout.completion_text import StopStrings
from plaudit_ppo.rollout.endings import eos_token_ids, no_ending
from plaudit_ppo.rollout.forward import evaluate_rollouts
from plaudit_ppo.rollout.prompts import (
    EncodedPrompts,
    Prompt,
    count_by_source,
    dealt_prompts,
    describe_prompts,
    encode_prompts,
    mixed_prompts,
)
from plaudit_ppo.rollout.rollouts import Rollouts, concatenate
from plaudit_ppo.rollout.samplers import LocalSampler, Sampler
from plaudit_ppo.rollout.sampling import pad_token_id
from plaudit_ppo.rollout.seeding import seeded_generator
from plaudit_ppo.runs.checkpoints import RunState
from plaudit_ppo.runs.log import Metrics, RunLog
from plaudit_ppo.runs.metrics_server import serving_figures
from plaudit_ppo.runs.run_files import RunFiles
from plaudit_ppo.runs.summary import TrainSummary
from plaudit_ppo.runs.trackers import check_trackers, tracking
from plaudit_ppo.scoring.pool import ScoredBatch, Scorer, gather
from plaudit_ppo.termination import Terminated, Termination
from plaudit_ppo.training import guards
from plaudit_ppo.training.experience import Experience, make_experience
from plaudit_ppo.training.gathering import gather_experience, gather_scored
from plaudit_ppo.training.held_out import metrics_of
from plaudit_ppo.training.learning_rates import set_learning_rates
from plaudit_ppo.training.metrics import masked_mean, rollout_metrics, sample_rows, sampling_ratio_error
from plaudit_ppo.training.sending import Sending, Sent
from plaudit_ppo.training.update import check_sampled_ratio, run_update

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Gained:
    """What an iteration has before its update.

    Attributes:
        sent: the rollouts of this process, and the scores of its evaluation scorer.
        experience: of this process.
        raw_scores: shape (B,), float32, of this process, as the scorer gave them.
        scored: of all processes.
        metrics: known so far.
        next_state: where the run stands after the iteration.
    """

    sent: Sequence[Sent]
    experience: Experience
    raw_scores: Tensor
    scored: ScoredBatch
    metrics: dict[str, float | None]
    next_state: RunState


class PPOTrainer:
    """Trains a policy by PPO against a scorer.

    Args:
        config: the settings. The command line uses `policy`, `critic`, `prompts` and the settings of scorers; the
            trainer does not read them.
        policy: a causal LM in float32, trained in place; `precision` says whether it computes in bfloat16.
        reference: the model that the KL penalty compares with; never changed. A resumed run needs the reference that
            it began with. None: the policy without its LoRA adapter.
        critic: a network of its own, or a head on the policy's network; trained in place.
        tokenizer: the policy's tokenizer; saved with the policy.
        prompts: the prompts of the training.
        scorer: gives the scores for the training; called from several threads. If it has an attribute `retries`, the
            number of repeated requests so far, that number is logged.
        eval_scorer: scores the same rollouts only for the log.
        eval_prompts: held-out prompts, on which the policy is evaluated every `eval_every` iterations; empty: no
            evaluation.

    Attributes:
        prompt_lines: one line about each source of prompts in the settings.

    Raises:
        ConfigError: a setting does not fit the policy, no token could end a completion, or an engine serves another
            model.
        EngineError: an engine does not answer.
        PromptError: a prompt cannot be encoded or is too long.
    """

    def __init__(
        self,
        config: PPOConfig,
        policy: PreTrainedModel,
        reference: PreTrainedModel | None,
        critic: Critic | TrunkCritic,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        scorer: Scorer,
        eval_scorer: Scorer | None = None,
        eval_prompts: Sequence[Prompt] = (),
    ) -> None:
        check_cache(policy)
        self._config = config
        self._tokenizer = tokenizer
        self._eos_ids = eos_token_ids(policy, tokenizer, are_chats=any(prompt.messages for prompt in prompts))
        self._pad_id = pad_token_id(tokenizer, config.missing_pad, self._eos_ids)
        self._said_that_nothing_ended = False
        encode = partial(
            encode_prompts,
            tokenizer=tokenizer,
            max_tokens=config.max_prompt_tokens,
            drop_long=config.long_prompts == "drop",
        )
        encoded = encode(prompts)
        self._prompts, self._prompt_ids = encoded.prompts, encoded.ids
        self._source_sizes = count_by_source(self._prompts, len(config.prompt_weights))
        held_out = encode(eval_prompts) if eval_prompts else EncodedPrompts()
        self._longest_prompt = max(map(len, (*self._prompt_ids, *held_out.ids)))
        self.prompt_lines = [
            *describe_prompts(encoded, config.prompts),
            *(f"held out: {line}" for line in describe_prompts(held_out, config.eval_prompts)),
        ]
        self._positions: int | None = getattr(policy.config, "max_position_embeddings", None)
        self.check_context(config.max_completion_tokens)
        self._scorer = scorer
        prompts_hash = hashlib.sha256(json.dumps(self._prompt_ids).encode()).hexdigest()
        self._state = RunState(iteration=0, kl_coef=config.kl_coef, prompts_hash=prompts_hash)

        check_trackers(config.trackers)
        accelerator = make_accelerator(config)
        self._accelerator = accelerator
        self._device = accelerator.device
        self._sending = Sending(
            config,
            tokenizer,
            accelerator,
            scorer=scorer,
            eval_scorer=eval_scorer,
            group_size=config.samples_per_prompt,
        )
        self._learner = make_learner(policy, critic, config, accelerator)
        self._kept = KeptWeights(accelerator.unwrap_model(self._learner.policy))
        self._files = RunFiles(config, self._learner, tokenizer, self._kept)
        if reference is not None:
            self._reference: nn.Module = prepare_reference(reference, config, accelerator)
        elif is_lora(policy):
            self._reference = AdapterOff(policy)
        else:
            raise ConfigError("reference: none given; give a frozen copy of the policy, or a policy with LoRA")
        self._sampler = self._make_sampler(held_out.ids)
        self._termination = Termination()
        self._batches = RolloutBatches(
            self._sampler,
            lambda iteration: [self._prompt_ids[index] for index in self._prompts_of(iteration)],
            iterations=config.iterations,
            kept=self._kept,
            as_sampled=self._as_sampled,
            is_ahead=config.max_staleness > 0,
        )
        self._held_out: HeldOut | None = None
        if eval_prompts:
            warn_of_training_prompts(self._prompt_ids, held_out.ids)
            self._held_out = HeldOut(
                config,
                held_out,
                sampler=self._sampler,
                evaluate=lambda rollouts: self._evaluate_rollouts(rollouts)[:2],
                tokenizer=tokenizer,
                accelerator=accelerator,
                scorer=scorer,
                eval_scorer=eval_scorer,
            )

    def _make_sampler(self, held_out_ids: Sequence[Sequence[int]]) -> Sampler:
        config, eos_ids, pad_id = self._config, self._eos_ids, self._pad_id
        stop = StopStrings(config.stop, self._tokenizer) if config.stop else None
        if config.sampler == "vllm":
            prompt_ids = [*self._prompt_ids, *held_out_ids]
            return EngineSampler(
                config, self._learner, self._tokenizer, prompt_ids, eos_ids=eos_ids, pad_id=pad_id, stop=stop
            )
        return LocalSampler(
            config,
            self._learner.generating,
            eos_ids=eos_ids,
            pad_id=pad_id,
            stop=stop,
            device=self._device,
            rank=self._accelerator.process_index,
        )

    def check_context(self, completion_tokens: int) -> None:
        """Refuses prompts and completions that together are longer than the policy's context.

        Raises:
            ConfigError: they are.
        """
        prompt_tokens = self._longest_prompt
        if self._positions is not None and prompt_tokens + completion_tokens > self._positions:
            raise ConfigError(
                f"the longest prompt has {prompt_tokens} tokens and max_completion_tokens is {completion_tokens}, "
                f"together above the policy's {self._positions} positions (max_position_embeddings); lower one of them"
            )

    def train(
        self,
        on_iteration: Callable[[Metrics], None] | None = None,
        *,
        resume: bool = False,
        termination: Termination | None = None,
    ) -> TrainSummary:
        """Runs all iterations. Writes log, samples and checkpoints, and at the end policy, critic and summary.

        Args:
            on_iteration: called with the metrics of each iteration.
            resume: continue from the newest checkpoint in the output directory, or from the start if there is none yet.
            termination: ends the run early, with a checkpoint of the last whole iteration; None: the run is not ended.

        Raises:
            ConfigError: the output directory cannot be written, is in use by another run, or holds a run although
                `resume` is not set; or the port for Prometheus is taken.
            CheckpointError: the checkpoint is broken, or belongs to other models or prompts; or a trial before the
                first iteration shows that the results could not be written.
            GuardError: a guard stopped the run; the subclass says which. The message names the checkpoint.
            EngineError: an engine that samples failed. The message names the checkpoint.
            OutputError: a checkpoint or the result cannot be written.
            Terminated: `termination` ended the run. The message names the checkpoint.
        """
        self._termination = termination = termination or Termination()
        with self._files.lock():
            self._state = self._files.open(self._state, resume=resume)
            if self._state.iteration < self._config.iterations:
                self._files.try_result(self._state)
            with termination.deferred():
                self._run_iterations(on_iteration, termination)
                return self._files.finish(self._state)

    def _run_iterations(self, on_iteration: Callable[[Metrics], None] | None, termination: Termination) -> None:
        done = self._state.iteration
        with (
            serving_figures(self._config, is_first_process=self._accelerator.is_main_process) as expose,
            self._files.logs(done=done) as (log, samples),
            tracking(self._accelerator, self._config, done=done) as track,
            closing(self._batches),
            self._evaluating(log, done=done) as evaluate,
        ):
            while True:
                with self._leaving_a_checkpoint(log):
                    if (evaluation := evaluate(termination)) is not None:
                        expose(evaluation)
                        track(evaluation)
                    if self._state.iteration >= self._config.iterations:
                        return
                    metrics = self._iterate(samples, termination)
                log.write(metrics)
                expose(metrics)
                track(metrics)
                if self._checkpoint_is_due():
                    log.force()
                    self._save_checkpoint()
                if on_iteration:
                    on_iteration(metrics)

    @contextmanager
    def _evaluating(self, log: RunLog, *, done: int) -> Iterator[Callable[[Termination], Metrics | None]]:
        """Yields what evaluates the policy on held-out prompts where that is due, and gives the metrics of it.

        An evaluation is a function of the weights, so one that was cut short is made again by the resumed run.
        """
        held_out = self._held_out
        if held_out is None:
            yield lambda _: None
            return
        with self._files.evaluations(done=done) as (evaluations, lines):
            held_out.go_on(lines)
            self._files.name_best(held_out.best)

            def evaluate(termination: Termination) -> Metrics | None:
                state = self._state
                if not held_out.is_due(state.iteration):
                    return None
                with termination.at_once() if self._accelerator.num_processes == 1 else nullcontext():
                    self._batches.settle()
                    evaluation = held_out.run(state.iteration, fingerprint=state.fingerprint)
                evaluations.write(evaluation)
                evaluations.force()
                if held_out.best == state.iteration:
                    log.force()
                    self._save_checkpoint()
                return metrics_of(evaluation)

            yield evaluate

    @contextmanager
    def _leaving_a_checkpoint(self, log: RunLog) -> Iterator[None]:
        """Whatever stops the run inside names a checkpoint of where it stands."""
        try:
            yield
        except (GuardError, EngineError) as error:
            raise type(error)(f"{error}; {self._leave_checkpoint()}") from error
        except Terminated as error:
            log.force()
            place = self._leave_checkpoint()
            raise Terminated(f"after {self._state.iteration} iterations; {place}") from error

    def _save_checkpoint(self, *, remove_old: bool = True) -> Path:
        best = self._held_out.best if self._held_out else None
        return self._files.save_checkpoint(self._state, best=best, remove_old=remove_old)

    def _leave_checkpoint(self) -> str:
        """Writes one where the run stops before its end, and says where. It removes no other, which may be better."""
        try:
            return f"checkpoint: {self._save_checkpoint(remove_old=False)}"
        except (OSError, PPOError) as error:
            return f"no checkpoint could be written ({error})"

    def _checkpoint_is_due(self) -> bool:
        done, every = self._state.iteration, self._config.checkpoint_every
        return done == self._config.iterations or (every > 0 and done % every == 0)

    def _iterate(self, samples: RunLog, termination: Termination) -> dict[str, float | None]:
        """One iteration: rollout and update. Returns its metrics.

        Raises:
            GuardError, EngineError: see `train`.
            Terminated: before the update, so that the state is still that of the iteration's start.
        """
        start = time.perf_counter()
        with termination.at_once() if self._accelerator.num_processes == 1 else nullcontext():
            gained = self._gain_experience(samples)
        if largest(self._accelerator, float(termination.requested)):  # several processes have to stop at one place
            raise Terminated
        metrics = gained.metrics

        # 5. Update policy and critic; without a single score there is nothing to learn from.
        update_start = time.perf_counter()
        metrics |= self._update(gained.experience, self._state.iteration)
        update_s = time.perf_counter() - update_start

        # 6. The scores that are for the log alone.
        wait_s = gained.scored.wait_s
        eval_scored = self._sending.eval_scored(gained.sent)
        if eval_scored:
            metrics["eval/scores"] = masked_mean(eval_scored.scores, eval_scored.scored)
            wait_s += eval_scored.wait_s
        metrics["scoring/exposed_wait_s"] = wait_s
        if self._samples_are_due():
            self._write_samples(samples, gained)
        self._state = gained.next_state
        return metrics | {"time/update_s": update_s, "time/iteration_s": time.perf_counter() - start}

    def _gain_experience(self, samples: RunLog) -> _Gained:
        """What comes before the update; changes no weight."""
        config, state = self._config, self._state
        learning_rate = set_learning_rates(self._learner.optimizers, config, state.iteration)
        retries = [self._retries_of(each) for each in (self._sampler, self._scorer)]

        # 1. Sample completions; each micro-batch goes to the scorer as soon as it exists.
        prompts = [self._prompts[index] for index in self._prompts_of(state.iteration)]
        sent = self._sending.send_all(prompts, self._batches.sampled(state.iteration))
        generate_s = self._sampler.generate_s
        self._batches.go_on(state.iteration)

        # 2. While the scorer works: logprobs of policy and reference, values of the critic.
        rollouts = concatenate([part.rollouts for part in sent], self._pad_id)
        logprobs, ref_logprobs, values = self._evaluate_rollouts(rollouts, self._as_sampled())
        sampling_error = largest(
            self._accelerator, sampling_ratio_error(rollouts.sampled_logprobs, logprobs, rollouts.completion_mask)
        )
        if config.sampling_correction == "none":
            tolerance = config.sampling_tolerance or guards.SAMPLING_TOLERANCE[config.precision]
            guards.check_sampling(sampling_error, tolerance=tolerance)

        # 3. Await the scores; a rollout without one is masked from here on.
        scored = gather([part.scores for part in sent])

        # 4. Rewards, advantages, returns.
        scores = scored.scores.to(self._device)
        experience = make_experience(
            rollouts,
            scores,
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            values=values,
            kl_coef=state.kl_coef,
            config=config,
            total=self._accelerator.reduce,
            step_scores=self._sending.step_scores(sent, scored, rollouts),
        )
        everyone = gather_experience(self._accelerator, experience)
        all_scored = gather_scored(self._accelerator, scored)
        metrics: dict[str, float | None] = {
            "iteration": state.iteration + 1,
            "episode": (state.iteration + 1) * config.rollout_batch_size,
            "lr": learning_rate,
            **rollout_metrics(
                everyone,
                all_scored.scores.to(self._device),
                kl_coef=state.kl_coef,
                group_size=config.samples_per_prompt,
            ),
            "val/sampling_ratio_error": sampling_error,
            "sampler/canary_error": self._sampler.canary_error,
            "sampler/retries": self._retries_since(retries[0], self._sampler),
            "sampler/staleness": state.iteration - self._batches.version,
            "time/publish_s": self._batches.publish_s,
            "time/generate_s": generate_s,
            "time/generate_wait_s": self._batches.wait_s,
            "time/tokens_per_second": self._sampled_tokens(sent) / largest(self._accelerator, generate_s),
            "scoring/call_s": all_scored.call_s,
            "scoring/retries": self._retries_since(retries[1], self._scorer),
        }
        next_state = self._next_state(metrics, all_scored)
        gained = _Gained(sent, experience, scores, all_scored, metrics, next_state)
        try:
            self._check(metrics, next_state, all_scored)
        except GuardError:
            self._write_samples(samples, gained)  # which it tells to look at
            raise
        if metrics["val/eos_share"] == 0:
            self._say_that_nothing_ended()
        return gained

    def _prompts_of(self, iteration: int) -> list[int]:
        """The prompt of each rollout of this process in an iteration."""
        config = self._config
        count = config.rollout_batch_size // config.samples_per_prompt
        own = share(self._accelerator, self._deal(start=iteration * count, count=count))
        return [index for index in own for _ in range(config.samples_per_prompt)]

    @contextmanager
    def _as_sampled(self) -> Iterator[None]:
        """Inside, the policy is the version that sampled the rollouts at hand, where that is an earlier one."""
        if not self._kept.exist:
            yield
            return
        with self._termination.uninterrupted(), self._kept.swapped_in():
            yield

    def _evaluate_rollouts(
        self, rollouts: Rollouts, as_sampled: AbstractContextManager[None] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `evaluate_rollouts`: logprobs of policy and reference, values of the critic."""
        return evaluate_rollouts(
            self._learner.policy,
            self._reference,
            self._learner.critic,
            rollouts,
            temperature=self._config.temperature,
            micro_batch_size=self._config.rollout_micro_batch_size,
            chunk_tokens=self._config.logits_chunk_tokens,
            as_sampled=as_sampled,
        )

    def _deal(self, *, start: int, count: int) -> list[int]:
        """Which prompts are the ones from `start` on, each counted once whatever samples_per_prompt is."""
        config = self._config
        if not config.prompt_weights:
            return dealt_prompts(len(self._prompts), start=start, count=count, seed=config.seed)
        return mixed_prompts(self._source_sizes, config.prompt_weights, start=start, count=count, seed=config.seed)

    def _say_that_nothing_ended(self) -> None:
        if not self._said_that_nothing_ended:
            _log.warning(no_ending(self._config, self._eos_ids, self._tokenizer))
        self._said_that_nothing_ended = True

    def _sampled_tokens(self, sent: Sequence[Sent]) -> int:
        """Of all processes."""
        return gather_sum(self._accelerator, sum(int(part.rollouts.completion_mask.sum()) for part in sent)) or 0

    @staticmethod
    def _retries_of(counted: object) -> int | None:
        retries: int | None = getattr(counted, "retries", None)
        return retries

    def _retries_since(self, before: int | None, counted: object) -> int | None:
        """Of all processes; None for what does not count them."""
        now = self._retries_of(counted)
        return gather_sum(self._accelerator, None if now is None or before is None else now - before)

    def _next_state(self, metrics: Metrics, scored: ScoredBatch) -> RunState:
        """Where the run stands after this iteration."""
        config, state, kl = self._config, self._state, metrics["objective/kl"]
        num_scores = int(scored.scored.sum())
        kl_coef = state.kl_coef
        policy_moves = state.iteration >= config.critic_warmup_iterations
        if config.kl_controller == "adaptive" and kl is not None and policy_moves:
            kl_coef = next_kl_coef(
                kl_coef, kl, target=config.kl_target, horizon=config.kl_horizon, num_rollouts=num_scores
            )
        constant = guards.count_constant(state.constant_iterations, metrics["scoring/score_std"], num_scores=num_scores)
        return replace(
            state,
            iteration=state.iteration + 1,
            kl_coef=kl_coef,
            constant_iterations=constant,
            fingerprint=scored.fingerprint or state.fingerprint,
        )

    def _check(self, metrics: Metrics, next_state: RunState, scored: ScoredBatch) -> None:
        """What can stop the run before the update."""
        config = self._config
        if config.sampling_correction != "none":
            guards.check_correction(
                kl=metrics["val/sampling_kl"],
                clipped_share=metrics["val/sampling_clipped_share"],
                log_ratio=metrics["val/sampling_log_ratio_max"],
                max_kl=config.max_sampling_kl,
                max_clipped_share=config.max_sampling_clipped_share,
                max_log_ratio=config.max_sampling_log_ratio,
            )
        guards.check_reward_model(scored.fingerprint, known=self._state.fingerprint)
        masked_share = metrics["scoring/masked_share"] or 0.0
        guards.check_masked_share(masked_share, limit=config.max_masked_share, failure=scored.failure)
        guards.check_constant(next_state.constant_iterations, limit=config.max_constant_iterations)
        guards.check_kl(metrics["objective/kl"], budget=config.kl_budget)

    def _update(self, experience: Experience, iteration: int) -> dict[str, float]:
        is_stale, learnable = self._kept.exist, bool(self._accelerator.reduce(experience.mask.sum()))
        if is_stale and learnable:
            with self._kept.swapped_in():
                check_sampled_ratio(self._learner, experience, self._config)
        if self._config.max_staleness:
            self._kept.keep()
        if not learnable:
            return {}
        generator = seeded_generator(torch.device("cpu"), self._config.seed, "minibatches", iteration)
        return run_update(
            self._learner,
            experience,
            self._config,
            generator=generator,
            critic_alone=iteration < self._config.critic_warmup_iterations,
            is_stale=is_stale,
        )

    def _samples_are_due(self) -> bool:
        every, done = self._config.sample_every, self._state.iteration
        return every > 0 and (done % every == 0 or done + 1 == self._config.iterations)

    def _write_samples(self, samples: RunLog, gained: _Gained) -> None:
        if not self._config.sample_every:
            return
        indices = self._prompts_of(self._state.iteration)
        items = [item for part in gained.sent for item in part.items]
        lengths = [length for part in gained.sent for length in part.rollouts.completion_mask.sum(1).tolist()]
        columns = [prompt.columns for part in gained.sent for prompt in part.prompts]
        limit, group = self._config.num_samples, self._config.samples_per_prompt
        rows = sample_rows(indices, items, lengths, gained.experience, gained.raw_scores, limit=limit, columns=columns)
        for number, row in enumerate(rows):
            of_group = {"sample": number % group} if group > 1 else {}
            samples.write({"iteration": self._state.iteration + 1, **of_group, **row})
