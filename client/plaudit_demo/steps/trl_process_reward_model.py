"""Trains the process reward model by TRL 1.11: `python -m plaudit_demo.steps.trl_process_reward_model SPEC.json`.

Runs in the environment of that TRL, the last that had a trainer for them, and leaves a checkpoint as its users have it.
"""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaForTokenClassification, set_seed
from transformers.utils import logging
from trl.experimental.prm import PRMConfig, PRMTrainer

from plaudit_demo.output import read_jsonl


def main() -> None:
    """Train what the file named on the command line describes."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    set_seed(spec["seed"])
    output = Path(spec["output"])
    tokenizer = AutoTokenizer.from_pretrained(spec["model"], padding_side="right")
    model = LlamaForTokenClassification.from_pretrained(spec["model"], num_labels=2)
    with redirect_stdout(sys.stderr):  # the trainer prints
        trainer = PRMTrainer(
            model=model,
            args=PRMConfig(
                output_dir=str(output.with_name("trainer")),
                num_train_epochs=spec["epochs"],
                per_device_train_batch_size=spec["batch_size"],
                learning_rate=spec["learning_rate"],
                step_separator=spec["step_separator"],
                bf16=False,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                seed=spec["seed"],
            ),
            train_dataset=Dataset.from_list(read_jsonl(Path(spec["examples"]))),
            processing_class=tokenizer,
        )
        trainer.train()
        trainer.save_model(str(output))


if __name__ == "__main__":
    main()
