"""The PPO stage: models from the warmed-up checkpoint, scores over HTTP, gold for the log alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plaudit_client import RewardClient
from plaudit_demo.data.gold import gold_reward
from plaudit_demo.errors import DemoError
from plaudit_demo.settings import DemoSettings
from plaudit_ppo import (
    PPOConfig,
    PPOError,
    PPOTrainer,
    TrainSummary,
    frozen_copy,
    load_critic,
    load_policy,
    read_prompts,
)
from plaudit_ppo.rollout.seeding import seeded_generator
from plaudit_ppo.runs.log import Metrics


@dataclass(frozen=True)
class GoldScore:
    """The gold reward in the form of a score."""

    score: float
    status: str = "ok"


def gold_scores(items: Sequence[Mapping[str, Any]]) -> list[GoldScore]:
    """The gold reward as a scorer: same items, same kind of answer as the service."""
    return [GoldScore(gold_reward(item["prompt"], item["completion"])) for item in items]


def ppo_config(settings: DemoSettings, output: Path, *, policy: Path, prompts: Path, url: str) -> PPOConfig:
    """The trainer's settings, complete: `plaudit-ppo train` would run the same training."""
    return PPOConfig(
        policy=str(policy),
        prompts=(str(prompts),),
        scorer_urls=(url,),
        output=str(output),
        iterations=settings.ppo_iterations,
        rollout_batch_size=settings.ppo_rollouts,
        rollout_micro_batch_size=settings.ppo_micro_batch,
        micro_batch_size=settings.ppo_micro_batch,
        num_minibatches=settings.ppo_minibatches,
        max_completion_tokens=settings.max_completion_tokens,
        temperature=settings.temperature,
        warmup_iterations=settings.ppo_warm_up_iterations,
        learning_rate=settings.ppo_learning_rate,
        kl_coef=settings.kl_coef,
        seed=settings.seed,
    )


def train_policy(config: PPOConfig, client: RewardClient, *, on_iteration: Callable[[Metrics], None]) -> TrainSummary:
    """Train by PPO; everything that a run leaves goes to the configured output.

    Args:
        config: from `ppo_config`.
        client: of the service that scores.
        on_iteration: called with the metrics of each iteration.

    Raises:
        DemoError: the training failed.
    """
    try:
        policy, tokenizer = load_policy(config.policy or "")
        generator = seeded_generator(torch.device("cpu"), config.seed, "critic head")
        critic = load_critic(config.policy or "", head_init=config.critic_head_init, generator=generator)
        prompts = read_prompts(config.prompts)
        trainer = PPOTrainer(
            config, policy, frozen_copy(policy), critic, tokenizer, prompts, client.score, eval_scorer=gold_scores
        )
        return trainer.train(on_iteration=on_iteration)
    except PPOError as error:
        raise DemoError(f"PPO: {error}") from error
