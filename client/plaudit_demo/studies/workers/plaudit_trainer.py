"""A run of a study by plaudit's own trainer."""

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from plaudit_client import RewardClient
from plaudit_demo.studies.spec import RunSpec
from plaudit_demo.studies.workers.recorder import Recorder
from plaudit_ppo import PPOConfig, PPOTrainer, frozen_copy, load_critic, read_prompts
from plaudit_ppo.rollout.seeding import seeded_generator


def train(
    spec: RunSpec,
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    client: RewardClient,
    recorder: Recorder,
) -> None:
    """Train the policy in place."""
    config = PPOConfig(
        output=spec.output,
        iterations=spec.iterations,
        rollout_batch_size=spec.rollouts,
        rollout_micro_batch_size=spec.micro_batch,
        micro_batch_size=spec.micro_batch,
        num_minibatches=spec.minibatches,
        epochs=spec.epochs,
        max_completion_tokens=spec.max_completion_tokens,
        temperature=spec.temperature,
        missing_eos=spec.missing_eos,
        kl_coef=spec.kl_coef,
        learning_rate=spec.learning_rate,
        warmup_iterations=spec.warm_up_iterations,
        max_grad_norm=spec.max_grad_norm,
        sampler="vllm" if spec.engine_url else "local",
        engine_urls=(spec.engine_url,) if spec.engine_url else (),
        sampling_correction="token_truncate" if spec.engine_url else "none",
        max_staleness=spec.max_staleness,
        clip_range=spec.clip_range,
        checkpoint_every=0,
        sample_every=0,
        seed=spec.seed,
    )
    generator = seeded_generator(torch.device("cpu"), spec.seed, "critic head")
    critic = load_critic(spec.policy, head_init="normal", generator=generator)
    trainer = PPOTrainer(
        config, policy, frozen_copy(policy), critic, tokenizer, read_prompts(spec.prompts), client.score
    )
    recorder.begin()
    trainer.train(on_iteration=recorder.record)
