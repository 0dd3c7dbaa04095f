"""The reward model: a scalar head on a small Llama, trained on preference pairs with TRL's RewardTrainer."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from transformers import (
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import RewardConfig, RewardTrainer

from plaudit_demo.data.preferences import Pair

# TRL turns it on; transformers renamed it in a 5.x release and warns about the old name.
_CHECKPOINTING = (
    "activation_checkpointing"
    if any(field.name == "activation_checkpointing" for field in fields(RewardConfig))
    else "gradient_checkpointing"
)


def train_reward_model(
    model: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    *,
    num_epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    output: Path,
    on_step: Callable[[float], None],
) -> None:
    """Train a reward model in place, and save it as TRL does.

    loss = -log sigmoid(score(chosen) - score(rejected)), plus TRL's 0.01 * (sum of both scores)^2, which keeps the mean
    score near 0. TRL appends EOS to every completion, which the export reads in the `training_args.bin` of TRL.

    Args:
        model: changed in place; `num_labels=1`.
        tokenizer: the reward model's own; has an EOS token and another pad token.
        pairs: what to learn from.
        num_epochs: passes over the pairs.
        batch_size: pairs per step.
        learning_rate: peak; rises over the first tenth of the steps, then falls linearly to 0.
        seed: of the order of the pairs.
        output: directory of the checkpoint.
        on_step: called after each step with its loss.
    """
    disable_progress_bar()  # of `datasets`, while it tokenizes
    rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    num_steps = num_epochs * -(-len(rows) // batch_size)
    config = RewardConfig(
        output_dir=str(output),
        num_train_epochs=num_epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=max(1, num_steps // 10),
        center_rewards_coefficient=0.01,
        max_length=model.config.max_position_embeddings,
        seed=seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        dataloader_pin_memory=False,
        **{_CHECKPOINTING: False},
    )
    trainer = RewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[_OnStep(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.eval()
    model.config.use_cache = True
    trainer.save_model()


class _OnStep(TrainerCallback):
    """Hands the loss of every step to a function."""

    def __init__(self, on_step: Callable[[float], None]) -> None:
        self._on_step = on_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._on_step(logs["loss"])


def score_texts(
    model: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    batch_size: int = 64,
) -> list[float]:
    """Raw scores of texts, each with EOS appended, as TRL trains."""
    scores = []
    for start in range(0, len(texts), batch_size):
        rows = [text + tokenizer.eos_token for text in texts[start : start + batch_size]]
        batch = tokenizer(rows, padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        scores += logits[:, 0].tolist()
    return scores


def pair_accuracy(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]
) -> float:
    """The share of pairs whose chosen completion scores higher."""
    chosen = score_texts(model, tokenizer, [pair.prompt + pair.chosen for pair in pairs])
    rejected = score_texts(model, tokenizer, [pair.prompt + pair.rejected for pair in pairs])
    return sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(pairs)
