"""LLaMA-Factory's own code trains a reward model for two steps, saves it, loads it again, and scores texts.

python llamafactory_reward_model.py BASE OUTPUT full|lora ITEMS     ITEMS: JSON, texts; the scores go to OUTPUT.json

LLaMA-Factory and the TRL that it asks for are imported whole. Stand-ins are in the place of torchaudio and omegaconf,
which are not installed, and none of them is called. Its check of versions is off: it names an older transformers.
"""

import asyncio
import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

os.environ["DISABLE_VERSION_CHECK"] = "1"
for name in ("torchaudio", "omegaconf"):
    sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))

from llamafactory.chat.hf_engine import HuggingfaceEngine  # noqa: E402
from llamafactory.hparams import get_infer_args  # noqa: E402
from llamafactory.train.tuner import run_exp  # noqa: E402

COLUMNS = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}


def main(base, output, kind, items):
    train(base, output, kind)
    trained = {"model_name_or_path": output}
    if kind == "lora":
        trained = {"model_name_or_path": base, "adapter_name_or_path": output}
    args = {"template": "chatml", "stage": "rm", "finetuning_type": kind, "infer_dtype": "float32"}
    engine = HuggingfaceEngine(*get_infer_args(trained | args))
    scores = [asyncio.run(engine.get_scores([item])).item() for item in json.loads(items)]
    Path(f"{output}.json").write_text(json.dumps(scores))


def train(base, output, kind):
    data = Path(f"{output}-data")
    data.mkdir()
    answers = {"chosen": {"from": "gpt", "value": "Seven minutes."}, "rejected": {"from": "gpt", "value": "No."}}
    row = {"conversations": [{"from": "human", "value": "How do I boil an egg?"}], **answers}
    (data / "pairs.json").write_text(json.dumps([row] * 4))
    described = {"file_name": "pairs.json", "ranking": True, "formatting": "sharegpt", "columns": COLUMNS}
    (data / "dataset_info.json").write_text(json.dumps({"pairs": described}))
    run_exp(
        {
            "model_name_or_path": base,
            "output_dir": output,
            "stage": "rm",
            "do_train": True,
            "finetuning_type": kind,
            "dataset": "pairs",
            "dataset_dir": str(data),
            "template": "chatml",
            "max_steps": 2,
            "learning_rate": 0.05,
            "disable_gradient_checkpointing": True,  # its own form of it fails with this transformers
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
