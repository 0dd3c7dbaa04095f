"""The PPO loop, in the order of the paper: sample, evaluate, score, reward, advantage, update.

Ouyang et al. 2022, arXiv 2203.02155; Huang et al. 2024, arXiv 2403.17031. Holds the models, the clock and the files;
what is computed is in the modules that it calls.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plaudit_ppo.config import PPOConfig, to_toml
from plaudit_ppo.errors import ConfigError, MaskedShareError, RatioError
from plaudit_ppo.experience import Experience, make_experience
from plaudit_ppo.forward import completion_logits, completion_values, token_logprobs
from plaudit_ppo.log import Metrics, MetricsLog
from plaudit_ppo.metrics import masked_mean, rollout_metrics, sampling_ratio_error
from plaudit_ppo.models import Critic, disable_dropout
from plaudit_ppo.optimization import make_optimizer, set_learning_rate
from plaudit_ppo.prompts import Prompt, dealt_prompts, encode_prompt, pad_left
from plaudit_ppo.rollouts import Rollouts, completion_texts, concatenate, pad_token_id, sample_rollouts
from plaudit_ppo.scoring import ScoredBatch, Scorer, ScoringPool, gather, to_item
from plaudit_ppo.seeding import seeded_generator
from plaudit_ppo.update import Learner, run_update


@dataclass(frozen=True)
class TrainSummary:
    """A finished run.

    Attributes:
        iterations: how many there were.
        episodes: rollouts sampled.
        seconds: of the whole training, without saving.
        exposed_wait_share: share of that time in which training stood still for scores.
        masked_share: share of the rollouts that got no score.
        final: the metrics of the last iteration.
    """

    iterations: int
    episodes: int
    seconds: float
    exposed_wait_share: float
    masked_share: float
    final: dict[str, float | None]


@dataclass(frozen=True)
class _Pending:
    """Rollouts whose scores are on their way."""

    rollouts: Rollouts
    scores: "Future[ScoredBatch]"
    eval_scores: "Future[ScoredBatch] | None"


class PPOTrainer:
    """Trains a policy by PPO against a scorer.

    Args:
        config: the settings; `policy`, `critic`, `prompts`, `scorer_urls` are for the command line, not read here.
        policy: a causal LM in float32, trained in place.
        reference: the anchor of the KL penalty, never changed.
        critic: a network of its own, trained in place.
        tokenizer: the policy's; saved with it as it is.
        prompts: what the policy completes.
        scorer: gives the scores that are trained on; called from several threads.
        eval_scorer: scores the same rollouts for the log alone.

    Raises:
        ConfigError: the output directory already holds a run, or a setting does not fit the policy.
        PromptError: a prompt cannot be encoded or is too long.
    """

    def __init__(
        self,
        config: PPOConfig,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        critic: Critic,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        scorer: Scorer,
        eval_scorer: Scorer | None = None,
    ) -> None:
        self._config = config
        self._output = Path(config.output)
        self._tokenizer = tokenizer
        self._pad_id = pad_token_id(tokenizer, config.missing_pad)
        self._prompts = prompts
        self._prompt_ids = [encode_prompt(prompt, tokenizer, max_tokens=config.max_prompt_tokens) for prompt in prompts]
        _check_context(policy, max(map(len, self._prompt_ids)), config.max_completion_tokens)
        self._pool = ScoringPool(scorer, config.scorer_concurrency)
        self._eval_pool = ScoringPool(eval_scorer, config.scorer_concurrency) if eval_scorer else None

        accelerator = Accelerator()
        if accelerator.num_processes > 1:
            raise ConfigError(f"{accelerator.num_processes} processes, limit 1; start without accelerate launch")
        self._device = accelerator.device
        optimizer = make_optimizer(disable_dropout(policy), disable_dropout(critic), config)
        policy, critic, optimizer = accelerator.prepare(policy, critic, optimizer)
        self._learner = Learner(policy, critic, optimizer, accelerator)
        self._reference = disable_dropout(reference).requires_grad_(False).to(self._device)

    def train(self, on_iteration: Callable[[Metrics], None] | None = None) -> TrainSummary:
        """Runs all iterations, writes log.jsonl as it goes, and saves policy and critic at the end.

        Args:
            on_iteration: called with the metrics of each iteration.

        Raises:
            MaskedShareError: too many rollouts got no score; policy and critic are saved as they are.
            RatioError: sampling and training disagree.
            DivergenceError: a gradient is not finite.
        """
        start = time.perf_counter()
        waited_s, masked, metrics = 0.0, 0.0, dict[str, float | None]()
        with self._open_output() as log:
            for iteration in range(self._config.iterations):
                metrics = self._iterate(iteration)
                waited_s += metrics["scoring/exposed_wait_s"] or 0.0
                masked += metrics["scoring/masked_share"] or 0.0
                log.write(metrics)
                if on_iteration:
                    on_iteration(metrics)
        seconds = time.perf_counter() - start
        self.save()
        iterations = self._config.iterations
        episodes = iterations * self._config.rollout_batch_size
        return TrainSummary(iterations, episodes, seconds, waited_s / seconds, masked / iterations, metrics)

    def save(self) -> None:
        """Writes `policy/` (with the tokenizer) and `critic/` as directories that transformers reads."""
        unwrap = self._learner.accelerator.unwrap_model
        unwrap(self._learner.policy).save_pretrained(self._output / "policy")
        self._tokenizer.save_pretrained(self._output / "policy")
        unwrap(self._learner.critic).save_pretrained(self._output / "critic")

    def _open_output(self) -> MetricsLog:
        path = self._output / "log.jsonl"
        if path.exists():
            raise ConfigError(f"output: {self._output} already holds a run (log.jsonl); choose another directory")
        try:
            self._output.mkdir(parents=True, exist_ok=True)
            (self._output / "config.toml").write_text(to_toml(self._config), encoding="utf-8")
            return MetricsLog(path)
        except OSError as error:
            raise ConfigError(f"output: {self._output} cannot be written ({error.strerror}); choose another") from error

    def _iterate(self, iteration: int) -> dict[str, float | None]:
        """One iteration: rollout and update. Returns its metrics."""
        config, start = self._config, time.perf_counter()
        learning_rate = set_learning_rate(self._learner.optimizer, config, iteration)

        # 1. Sample completions; each micro-batch goes to the scorer as soon as it exists.
        pending = self._roll_out(iteration)
        generate_s = time.perf_counter() - start

        # 2. While the scorer works: logprobs of policy and reference, values of the critic.
        rollouts = concatenate([part.rollouts for part in pending], self._pad_id)
        logprobs, ref_logprobs, values = self._evaluate(rollouts)
        sampling_error = self._check_sampling(rollouts, logprobs)

        # 3. Await the scores; a rollout without one is masked from here on.
        scored = gather([part.scores for part in pending])
        eval_scores = gather([part.eval_scores for part in pending if part.eval_scores]) if self._eval_pool else None

        # 4. Rewards, advantages, returns.
        scores = scored.scores.to(self._device)
        experience = make_experience(
            rollouts, scores, logprobs=logprobs, ref_logprobs=ref_logprobs, values=values, config=config
        )
        metrics: dict[str, float | None] = {
            "iteration": iteration + 1,
            "episode": (iteration + 1) * config.rollout_batch_size,
            "lr": learning_rate,
            **rollout_metrics(experience, scores, config),
            "val/sampling_ratio_error": sampling_error,
            "scoring/call_s": scored.call_s,
            "scoring/exposed_wait_s": scored.wait_s,
        }
        if eval_scores is not None:
            metrics["eval/scores"] = masked_mean(eval_scores.scores, eval_scores.scored)
        self._check_masked_share(metrics["scoring/masked_share"] or 0.0, scored.failure)

        # 5. Update policy and critic; without a single score there is nothing to learn from.
        update_start = time.perf_counter()
        metrics |= self._update(experience, iteration)
        now = time.perf_counter()
        times = {"generate": generate_s, "update": now - update_start, "iteration": now - start}
        return metrics | {f"time/{name}_s": seconds for name, seconds in times.items()}

    def _roll_out(self, iteration: int) -> list[_Pending]:
        config = self._config
        count = config.rollout_batch_size
        indices = dealt_prompts(len(self._prompts), start=iteration * count, count=count, seed=config.seed)
        generator = seeded_generator(self._device, config.seed, "sampling", iteration)
        size = config.rollout_micro_batch_size
        return [self._sample(indices[first : first + size], generator) for first in range(0, count, size)]

    def _sample(self, indices: Sequence[int], generator: torch.Generator) -> _Pending:
        """Samples one rollout micro-batch and sends for its scores."""
        config = self._config
        ids, mask = pad_left([self._prompt_ids[index] for index in indices], self._pad_id)
        rollouts = sample_rollouts(
            self._learner.accelerator.unwrap_model(self._learner.policy),
            ids.to(self._device),
            mask.to(self._device),
            max_tokens=config.max_completion_tokens,
            temperature=config.temperature,
            eos_id=int(self._tokenizer.eos_token_id),
            pad_id=self._pad_id,
            generator=generator,
        )
        prompts = [self._prompts[index] for index in indices]
        # A chat's template ends the turn by itself.
        with_eos = [config.send_eos_text and prompt.messages is None for prompt in prompts]
        texts = completion_texts(rollouts, self._tokenizer, with_eos=with_eos)
        items = [
            to_item(prompt, text, finished=finished)
            for prompt, text, finished in zip(prompts, texts, rollouts.finished.tolist(), strict=True)
        ]
        eval_scores = self._eval_pool.submit(items) if self._eval_pool else None
        return _Pending(rollouts, self._pool.submit(items), eval_scores)

    @torch.no_grad()
    def _evaluate(self, rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
        """Logprobs of the policy and of the reference, and the critic's values, each of shape (B, T)."""
        parts = []
        for index in torch.arange(len(rollouts)).split(self._config.rollout_micro_batch_size):
            part = rollouts.select(index)
            logprobs, ref_logprobs = (
                token_logprobs(completion_logits(model, part, temperature=self._config.temperature), part)
                for model in (self._learner.policy, self._reference)
            )
            parts.append((index, logprobs, ref_logprobs, completion_values(self._learner.critic, part)))
        whole = tuple(torch.zeros_like(rollouts.sampled_logprobs) for _ in range(3))
        for index, *tensors in parts:
            for target, tensor in zip(whole, tensors, strict=True):
                target[index, : tensor.shape[1]] = tensor
        return whole[0], whole[1], whole[2]

    def _check_sampling(self, rollouts: Rollouts, logprobs: Tensor) -> float:
        error = sampling_ratio_error(rollouts.sampled_logprobs, logprobs, rollouts.completion_mask)
        if not error <= self._config.sampling_tolerance:  # also when it is NaN
            raise RatioError(
                f"the training forward gives the sampled tokens other probabilities than the generating one: ratio off "
                f"by {error:.2e}, limit {self._config.sampling_tolerance:.2e} (sampling_tolerance); look at padding, "
                "position ids, temperature, the key-value cache and the dtype of the policy"
            )
        return error

    def _check_masked_share(self, share: float, failure: str | None) -> None:
        if share > self._config.max_masked_share:
            self.save()
            raise MaskedShareError(
                f"{share:.0%} of the rollouts got no score, limit {self._config.max_masked_share:.0%} "
                f"(max_masked_share); first failure: {failure}; policy and critic are saved in {self._output}; look "
                "at the scorer, or raise the limit"
            )

    def _update(self, experience: Experience, iteration: int) -> dict[str, float]:
        if not experience.mask.any():
            return {}
        generator = seeded_generator(torch.device("cpu"), self._config.seed, "minibatches", iteration)
        return run_update(self._learner, experience, self._config, generator=generator)


def _check_context(policy: PreTrainedModel, prompt_tokens: int, completion_tokens: int) -> None:
    """Refuses prompts and completions that together are longer than the policy's context."""
    limit = getattr(policy.config, "max_position_embeddings", None)
    if limit is not None and prompt_tokens + completion_tokens > limit:
        raise ConfigError(
            f"the longest prompt has {prompt_tokens} tokens and max_completion_tokens is {completion_tokens}, together "
            f"above the policy's {limit} positions (max_position_embeddings); lower one of them"
        )
