"""Rollouts sampled by vLLM servers, which are given the policy's weights and are tested before each use.

An engine answers 200 to a reload that leaves old weights in place, and to completions from a cache of old weights. What
shows which weights it has are logprobs: after every publish each engine samples a few tokens (the canary), and the
training forward has to give them the same logprobs.
"""

import itertools
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plaudit_ppo.algorithm.kl import kl_k3
from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.collectives import from_first_process, largest
from plaudit_ppo.distributed.learner import Learner
from plaudit_ppo.engine.completions import (
    AnswerError,
    Completion,
    Sampling,
    completion_request,
    max_answer_bytes,
    parse_completion,
    rollout_seed,
    to_rollouts,
)
from plaudit_ppo.engine.fleet import connected, results
from plaudit_ppo.engine.versions import remove_other_versions, write_version
from plaudit_ppo.engine.vllm import ADAPTER, Connection, Engine, read_key
from plaudit_ppo.errors import ConfigError, DivergenceError, EngineError
from plaudit_ppo.models.sharding import whole_shape, whole_state
from plaudit_ppo.rollout.completion_text import StopStrings
from plaudit_ppo.rollout.forward import completion_logits, token_logprobs
from plaudit_ppo.rollout.rollouts import Rollouts
from plaudit_ppo.rollout.sampling import NOT_FINITE
from plaudit_ppo.training.guards import SAMPLING_TOLERANCE
from plaudit_ppo.training.metrics import sampling_ratio_error

_CANARY_PROMPTS = 4
_CANARY_TOKENS = 16
_COMPARED_TOKENS = 256
# What stands for the iteration in the seeds of what belongs to none.
_OF_CANARY, _OF_HELD_OUT = -1, -2

# The canary of one engine: its completions of the first prompts.
_Canary = list[Completion]


class EngineSampler:
    """Samples by one or several vLLM servers that all serve one version of the policy.

    Args:
        config: addresses, limits, seed.
        learner: whose policy is published.
        tokenizer: the policy's.
        prompt_ids: all prompts of the run; the first ones are the canary's.
        eos_ids: each ends a completion.
        pad_id: written before prompts and after completions.
        stop: what ends a completion besides; None: nothing.

    Attributes:
        canary_error: largest |ratio - 1| between an engine and the training forward at the last publish.
        retries: requests to engines that this process has sent a second time so far.
        generate_s: seconds from the first request of the last batch to its last completion.

    Raises:
        ConfigError: the key file cannot be read; or an engine serves another model than the policy, or with too short a
            context.
        EngineError: an engine does not answer.
    """

    def __init__(
        self,
        config: PPOConfig,
        learner: Learner,
        tokenizer: PreTrainedTokenizerBase,
        prompt_ids: Sequence[Sequence[int]],
        *,
        eos_ids: Sequence[int],
        pad_id: int,
        stop: StopStrings | None = None,
    ) -> None:
        self.canary_error: float | None = None
        self.retries: int | None = 0
        self.generate_s = 0.0
        self._completed_at = 0.0
        self._version: int | None = None  # that all engines have
        self._config = config
        self._learner = learner
        self._accelerator = learner.accelerator
        self._tokenizer = tokenizer
        self._pad_id = pad_id
        self._longest_prompt = max(map(len, prompt_ids))
        self._canary_prompts = list(prompt_ids[:_CANARY_PROMPTS])
        self._as_adapter = config.lora_rank > 0 and config.engine_sync != "weights"
        self._folder = Path(config.engine_sync_dir or Path(config.output) / "engine")
        self._connection = Connection(
            timeout_s=config.engine_timeout_s,
            concurrency=config.engine_concurrency,
            key=read_key(config.engine_key_file),
        )
        self._sampling = Sampling(
            temperature=config.temperature,
            max_tokens=config.max_completion_tokens,
            eos_ids=tuple(eos_ids),
            vocabulary=whole_shape(self._policy.get_input_embeddings().weight)[0],
            stop=stop,
        )
        self._models = from_first_process(self._accelerator, self._compare_all)

    def publish(self, version: int) -> None:
        """As `Sampler.publish`: when this returns, every engine has shown that it has the policy's weights.

        Raises:
            EngineError: an engine did not take the weights.
            DivergenceError: the policy gives no probabilities but NaN; no engine was given it.
            OutputError: the weights cannot be written.
        """
        if version == self._version:
            return
        self._check_finite()
        state = whole_state(self._policy, keep=self._accelerator.is_main_process)
        canaries = from_first_process(self._accelerator, lambda: self._hand_over(version, state))
        compared = {url: self._compared(canary) for url, canary in canaries.items()}
        self.canary_error = max(error for error, _ in compared.values())
        for url, (error, kl) in compared.items():
            self._check_canary(url, version, error, kl)
        if self._accelerator.is_main_process:
            remove_other_versions(self._folder, version)
        self._version = version

    @contextmanager
    def sampling(self, prompt_ids: Sequence[Sequence[int]], *, iteration: int) -> Iterator[Iterator[Rollouts]]:
        """As `Sampler.sampling`: all completions are asked for at once, and awaited a micro-batch at a time.

        Raises:
            EngineError: in the iteration: an engine gave no completion, or none that can be used.
        """
        with self._completing(prompt_ids, self._sampling, iteration) as rollouts:
            yield rollouts

    def sample_held_out(self, prompt_ids: Sequence[Sequence[int]], *, greedy: bool) -> Generator[Rollouts, None, None]:
        """As `Sampler.sample_held_out`.

        Raises:
            EngineError: an engine gave no completion, or none that can be used.
        """
        with self._completing(prompt_ids, replace(self._sampling, greedy=greedy), _OF_HELD_OUT) as rollouts:
            yield from rollouts

    @contextmanager
    def _completing(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, iteration: int
    ) -> Iterator[Iterator[Rollouts]]:
        config, size, start = self._config, self._config.rollout_micro_batch_size, time.perf_counter()
        first = self._accelerator.process_index * len(prompt_ids)
        with connected(config.engine_urls, self._connection) as fleet:
            engines = itertools.islice(itertools.cycle(fleet.engines), first, first + len(prompt_ids))
            calls = [
                fleet.start(self._complete(engine, ids, sampling, rollout_seed(config.seed, iteration, place)))
                for place, (engine, ids) in enumerate(zip(engines, prompt_ids, strict=True), start=first)
            ]
            yield (
                self._to_rollouts(prompt_ids[place : place + size], results(calls[place : place + size]))
                for place in range(0, len(calls), size)
            )
            self.retries = (self.retries or 0) + fleet.retries
        self.generate_s = self._completed_at - start

    def _hand_over(self, version: int, state: Mapping[str, Tensor]) -> dict[str, _Canary]:
        """Writes a version and has every engine load it; for the first process. Returns the canaries by address."""
        directory = write_version(self._folder, version, self._policy, state, as_adapter=self._as_adapter)

        async def renew(engine: Engine) -> _Canary:
            await (engine.load_adapter if self._as_adapter else engine.load_weights)(directory)
            return await self._sample_canary(engine)

        with connected(self._config.engine_urls, self._connection) as fleet:
            canaries = fleet.ask_all(renew)
            self.retries = (self.retries or 0) + fleet.retries
        return canaries

    def _compare_all(self) -> dict[str, str]:
        """By address, the model's name for requests."""
        with connected(self._config.engine_urls, self._connection) as fleet:
            return fleet.ask_all(self._compare)

    async def _compare(self, engine: Engine) -> str:
        """Refuses an engine that serves something else than the policy; the name under which it serves it.

        Token ids go in and out, so what counts is that an id is the same token, not how a text is cut into tokens.

        Raises:
            ConfigError: its context is too short, or its tokenizer has other tokens.
        """
        served = await engine.describe()
        needed = self._longest_prompt + self._config.max_completion_tokens
        if served.max_model_len is not None and served.max_model_len < needed:
            raise ConfigError(
                f"engine {engine.url}: its context is {served.max_model_len} tokens, but the longest prompt and "
                f"max_completion_tokens need {needed}; start the engine with a larger --max-model-len"
            )
        step = max(1, self._sampling.vocabulary // _COMPARED_TOKENS)
        for ids in (self._canary_prompts[0], range(0, len(self._tokenizer), step)):
            for number, token in await engine.tokenize(self._tokenizer.decode(list(ids))):
                own = self._tokenizer.convert_ids_to_tokens(number) if number < len(self._tokenizer) else None
                if own != token:
                    raise ConfigError(
                        f"engine {engine.url}: it has another tokenizer than the policy: token {number} is {token!r}, "
                        f"the policy's is {own!r}; start the engine with the policy's directory"
                    )
        return ADAPTER if self._as_adapter else served.model

    async def _sample_canary(self, engine: Engine) -> _Canary:
        """A few tokens by the request that samples rollouts: with its temperature, or a wrong one would not show."""
        sampling = replace(self._sampling, max_tokens=min(_CANARY_TOKENS, self._sampling.max_tokens))
        return [
            await self._complete(engine, ids, sampling, rollout_seed(self._config.seed, _OF_CANARY, place))
            for place, ids in enumerate(self._canary_prompts)
        ]

    async def _complete(self, engine: Engine, ids: Sequence[int], sampling: Sampling, seed: int) -> Completion:
        asked = completion_request(ids, sampling, model=self._models[engine.url], seed=seed)
        body = await engine.complete(asked, max_answer_bytes=max_answer_bytes(ids, sampling))
        self._completed_at = time.perf_counter()
        try:
            return parse_completion(body, ids, sampling)
        except AnswerError as error:
            raise EngineError(f"engine {engine.url}: its answer cannot be used: {error}") from error

    def _check_finite(self) -> None:
        """Raises before NaN is handed to anybody; the local sampler finds it in its own probabilities."""
        nothing = [Completion([0], [0.0], finished=True)] * len(self._canary_prompts)
        if not self._logprobs(self._to_rollouts(self._canary_prompts, nothing)).isfinite().all():
            raise DivergenceError(NOT_FINITE)

    def _compared(self, canary: _Canary) -> tuple[float, float]:
        """How far an engine is from the training forward; all processes have to ask for it.

        Returns:
            Largest |ratio - 1|, and the KL between them, k3, mean over tokens, in nats.
        """
        rollouts = self._to_rollouts(self._canary_prompts, canary)
        logprobs, mask = self._logprobs(rollouts), rollouts.completion_mask
        error = sampling_ratio_error(rollouts.sampled_logprobs, logprobs, mask)
        kl = float(kl_k3(rollouts.sampled_logprobs - logprobs)[mask].mean())
        return largest(self._accelerator, error), largest(self._accelerator, kl)

    def _check_canary(self, url: str, version: int, error: float, kl: float) -> None:
        """Raises where an engine has shown other weights than it was given; judged as its rollouts will be."""
        config = self._config
        if config.sampling_correction == "none":
            limit = config.sampling_tolerance or SAMPLING_TOLERANCE[config.precision]
            is_right, limits = error <= limit, f"limit {limit:.2e} (sampling_tolerance)"  # NaN is not right
        else:
            is_right = kl <= config.max_sampling_kl
            limits = (
                f"the KL between them is {kl:.2e} nats per token, limit {config.max_sampling_kl:.2e} (max_sampling_kl)"
            )
        if not is_right:
            raise EngineError(
                f"engine {url}: it confirmed that it has version {version} of the policy, but its logprobs come from "
                f"other weights: |ratio - 1| to the training forward is {error:.2e}, {limits}; {self._suspicion}"
            )

    @torch.no_grad()
    def _logprobs(self, rollouts: Rollouts) -> Tensor:
        logits = completion_logits(self._learner.policy, rollouts, temperature=self._config.temperature)
        return token_logprobs(logits, rollouts)

    def _to_rollouts(self, prompts: Sequence[Sequence[int]], completions: Sequence[Completion]) -> Rollouts:
        return to_rollouts(prompts, completions, pad_id=self._pad_id, device=self._accelerator.device)

    @property
    def _suspicion(self) -> str:
        """What to look at where an engine has other weights than it was given."""
        of_base = (
            "that its base model is still the run's policy, which a run without adapter would have replaced, "
            if self._as_adapter
            else ""
        )
        return f"check its flags (--logprobs-mode processed_logprobs, --dtype), {of_base}and that no other run uses it"

    @property
    def _policy(self) -> PreTrainedModel:
        policy: PreTrainedModel = self._accelerator.unwrap_model(self._learner.policy)
        return policy
