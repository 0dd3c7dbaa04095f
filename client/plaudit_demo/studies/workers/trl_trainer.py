"""The same run by the experimental PPO trainer of TRL 1.11, the last that had one; in an environment of its own."""

from typing import Any

import torch
from datasets import Dataset
from transformers import (
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from plaudit_client import RewardClient
from plaudit_demo.output import read_jsonl
from plaudit_demo.studies.spec import RunSpec
from plaudit_demo.studies.workers.recorder import Recorder
from plaudit_demo.studies.workers.remote_reward_model import RemoteRewardModel
from plaudit_demo.studies.workers.trl_draws import use_same_draws
from plaudit_ppo import frozen_copy, load_critic
from plaudit_ppo.rollout.seeding import seeded_generator
from plaudit_ppo.training.learning_rates import schedule

_ADAM_EPSILON = 1e-5


def train(
    spec: RunSpec,
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    client: RewardClient,
    recorder: Recorder,
) -> None:
    """Train the policy in place."""
    assert spec.missing_eos == "subtract", "TRL knows no other rule"
    assert spec.max_grad_norm == 0, "TRL's PPO does not clip gradients"
    set_seed(spec.seed)
    generator = seeded_generator(torch.device("cpu"), spec.seed, "critic head")
    critic = load_critic(spec.policy, head_init="normal", generator=generator).model
    optimizer = torch.optim.AdamW(
        [{"params": list(model.parameters())} for model in (policy, critic)],
        lr=spec.learning_rate,
        eps=_ADAM_EPSILON,
        weight_decay=0.0,
    )
    rows = [{"input_ids": tokenizer(row["prompt"])["input_ids"]} for row in read_jsonl(spec.prompts)]
    trainer = PPOTrainer(
        args=_config(spec),
        processing_class=tokenizer,
        model=policy,
        ref_model=frozen_copy(policy),
        reward_model=RemoteRewardModel(client, tokenizer),
        train_dataset=Dataset.from_list(rows),
        value_model=critic,
        optimizers=(optimizer, _schedule(optimizer, spec)),
        callbacks=[_OnIteration(recorder)],
    )
    trainer.remove_callback(PrinterCallback)
    if spec.trainer == "trl-same-draws":
        use_same_draws(trainer, spec, [row["input_ids"] for row in rows])
    trainer.train()


def _config(spec: RunSpec) -> PPOConfig:
    return PPOConfig(
        output_dir=spec.output,
        total_episodes=spec.iterations * spec.rollouts,
        # A minibatch is one micro-batch of 32 here. With gradient_accumulation_steps above 1, TRL would make one
        # optimizer step in so many micro-batches, however many minibatches they belong to.
        per_device_train_batch_size=spec.rollouts,
        gradient_accumulation_steps=1,
        num_mini_batches=spec.minibatches,
        local_rollout_forward_batch_size=spec.micro_batch,
        num_ppo_epochs=spec.epochs,
        response_length=spec.max_completion_tokens,
        stop_token="eos",  # noqa: S106  a token of text
        missing_eos_penalty=1.0,
        temperature=spec.temperature,
        kl_coef=spec.kl_coef,
        seed=spec.seed,
        num_sample_generations=0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _schedule(optimizer: torch.optim.Optimizer, spec: RunSpec) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of plaudit's own trainer, which TRL steps once per iteration."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda iteration: schedule(
            iteration, iterations=spec.iterations, warmup_iterations=spec.warm_up_iterations, lr_schedule="linear"
        ),
    )


class _OnIteration(TrainerCallback):
    """Hands TRL's figures of every iteration to the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._metrics: dict[str, float] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._recorder.begin()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        self._metrics = dict(logs or {})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._recorder.record(self._metrics)
