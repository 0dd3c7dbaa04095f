"""From settings to a trainer: the networks, prompts and scorers that a configuration names, loaded."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from plaudit_client.protocol import AlongWhat
from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.collectives import from_first_process
from plaudit_ppo.distributed.processes import make_accelerator
from plaudit_ppo.models.critic import Critic, TrunkCritic, check_critic_tokens, load_critic
from plaudit_ppo.models.lora import add_lora
from plaudit_ppo.models.places import local_directory, pin
from plaudit_ppo.models.policy import frozen_copy, load_policy
from plaudit_ppo.rollout.prompts import read_prompts
from plaudit_ppo.rollout.seeding import seeded_generator
from plaudit_ppo.scoring.combined import CombinedScorer
from plaudit_ppo.scoring.openrlhf import PREFIX, OpenRLHFScorer
from plaudit_ppo.scoring.pool import Scorer
from plaudit_ppo.scoring.remote import RemoteScorer
from plaudit_ppo.trainer import PPOTrainer


@dataclass(frozen=True)
class Scorers:
    """What scores a run: for training, and for the log alone."""

    train: Scorer
    evaluation: Scorer | None


def quiet_transformers() -> None:
    """No warnings and progress bars of transformers in this process: what matters of them is an error of ours."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def connected_scorers(config: PPOConfig) -> Iterator[Scorers]:
    """The scorers behind the addresses of a configuration, until the block ends.

    Raises:
        ConfigError: an address cannot be used.
    """
    with ExitStack() as stack:

        def connect(addresses: Sequence[str], along: AlongWhat = "none") -> list[Scorer]:
            return [_connect(address, config, stack, along) for address in addresses]

        along: AlongWhat = "steps" if config.reward_along == "steps" else "none"
        scorers, eval_scorers = connect(config.scorer_urls, along), connect(config.eval_scorer_urls)
        train: Scorer = CombinedScorer(
            scorers, config.scorer_weights, combination=config.scorer_combination, std_coef=config.scorer_std_coef
        )
        if along == "steps" and len(scorers) == 1:  # scores of steps are not combined
            (train,) = scorers
        yield Scorers(train, CombinedScorer(eval_scorers, combination="mean") if eval_scorers else None)


def _connect(address: str, config: PPOConfig, stack: ExitStack, along: AlongWhat) -> Scorer:
    if address.startswith(PREFIX):
        return OpenRLHFScorer(address, timeout_s=config.scorer_timeout_s, label_column=config.label_column)
    return stack.enter_context(RemoteScorer(address, timeout_s=config.scorer_timeout_s, along=along))


def load_trainer(config: PPOConfig, scorers: Scorers) -> PPOTrainer:
    """A trainer with everything that its configuration names.

    Raises:
        PPOError: something that is named is missing or does not fit; the subclass and the message say what.
    """
    prompts, eval_prompts = read_prompts(config.prompts), read_prompts(config.eval_prompts)
    config = _pinned(config)
    place = local_directory(config.policy or "", "policy")
    policy, tokenizer = load_policy(place, builtin_class=config.builtin_class)
    critic = _load_critic(config, policy, tokenizer)
    reference = None if config.lora_rank else frozen_copy(policy, config.frozen_precision)
    policy = add_lora(policy, config) if config.lora_rank else policy
    return PPOTrainer(
        config, policy, reference, critic, tokenizer, prompts, scorers.train, scorers.evaluation, eval_prompts
    )


def _pinned(config: PPOConfig) -> PPOConfig:
    """The settings with the commits that hub ids have now, so that all processes and a resume take the same."""

    def pin_both() -> tuple[str | None, str | None]:
        policy = pin(config.policy, "policy") if config.policy else None
        return policy, pin(config.critic, "critic") if config.critic else None

    policy, critic = from_first_process(make_accelerator(replace(config, trackers=())), pin_both)
    return replace(config, policy=policy, critic=critic)


def _load_critic(
    config: PPOConfig, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Critic | TrunkCritic:
    generator = seeded_generator(torch.device("cpu"), config.seed, "critic head")
    if config.critic_trunk == "policy":
        return TrunkCritic(policy, head_init=config.critic_head_init, generator=generator)
    start = local_directory(config.critic or config.policy or "", "critic")
    check_critic_tokens(start, tokenizer)
    return load_critic(
        start, head_init=config.critic_head_init, generator=generator, builtin_class=config.builtin_class
    )
