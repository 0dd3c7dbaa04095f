"""plaudit's random draws for TRL's PPO: the same prompts, completions and minibatches, so that the algorithm is left.

Its own completions would come from another stream of random numbers, and a training depends much on those.
"""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM
from trl.experimental.ppo import PPOTrainer, ppo_trainer

from plaudit_demo.studies.spec import RunSpec
from plaudit_ppo.rollout.forward import tempered
from plaudit_ppo.rollout.prompts import dealt_prompts, pad_left
from plaudit_ppo.rollout.sampling import sample_rollouts
from plaudit_ppo.rollout.seeding import seeded_generator

_CPU = torch.device("cpu")


def use_same_draws(trainer: PPOTrainer, spec: RunSpec, prompt_ids: Sequence[Sequence[int]]) -> None:
    """For the rest of the process, TRL's PPO draws what plaudit's trainer would with the seed of the spec."""
    tokenizer = trainer.processing_class
    draws = _Draws(spec, prompt_ids, eos_id=int(tokenizer.eos_token_id), pad_id=int(tokenizer.pad_token_id))
    trainer.dataloader = draws.queries()
    ppo_trainer.batch_generation = draws.generate
    ppo_trainer.np = SimpleNamespace(random=SimpleNamespace(permutation=draws.permutation))


class _Draws:
    """In the order in which TRL asks: the prompts of an iteration, their completions, an order for each epoch."""

    def __init__(self, spec: RunSpec, prompt_ids: Sequence[Sequence[int]], *, eos_id: int, pad_id: int) -> None:
        self._spec, self._prompt_ids = spec, prompt_ids
        self._eos_id, self._pad_id = eos_id, pad_id

    def queries(self) -> Iterator[dict[str, Tensor]]:
        """The prompts of each iteration."""
        count, seed = self._spec.rollouts, self._spec.seed
        for iteration in range(self._spec.iterations):
            self._sampling = seeded_generator(_CPU, seed, "sampling", iteration)
            self._minibatches = seeded_generator(_CPU, seed, "minibatches", iteration)
            dealt = dealt_prompts(len(self._prompt_ids), start=iteration * count, count=count, seed=seed)
            yield {"input_ids": pad_left([self._prompt_ids[index] for index in dealt], self._pad_id)[0]}

    def generate(self, policy: LlamaForCausalLM, queries: Tensor, size: int, *_unused: Any) -> tuple[Tensor, Tensor]:
        """In place of TRL's `batch_generation`: ids of prompts and completions, (B, P + T), and logits, (B, T, V)."""
        T, completions = self._spec.max_completion_tokens, []
        for part in queries.split(size):
            rollouts = sample_rollouts(
                policy,
                part,
                part != self._pad_id,
                max_tokens=T,
                temperature=self._spec.temperature,
                eos_ids=[self._eos_id],
                pad_id=self._pad_id,
                generator=self._sampling,
            )
            ids = rollouts.completion_ids
            completions.append(functional.pad(ids, (0, T - ids.shape[1]), value=self._pad_id))
        whole = torch.cat([queries, torch.cat(completions)], dim=1)
        logits = ppo_trainer.forward(policy, whole, self._pad_id).logits[:, -T - 1 : -1]
        return whole, tempered(logits, self._spec.temperature)

    def permutation(self, count: int) -> "np.ndarray[Any, Any]":
        """The order of the rollouts in an epoch, which TRL cuts into minibatches."""
        return torch.randperm(count, generator=self._minibatches).numpy()
