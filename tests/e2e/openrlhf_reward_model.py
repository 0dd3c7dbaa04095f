"""OpenRLHF's own code makes a reward model, saves it, loads it again, and scores texts; a training run needs a GPU.

python openrlhf_reward_model.py BASE OUTPUT PREFIX ITEMS     ITEMS: JSON, texts and chats; the scores go to OUTPUT.json

OpenRLHF is imported whole: its model, its `save_model`, its dataset and its scoring server are its own. Stand-ins are
in the place of DeepSpeed, FlashAttention and what else is not installed; of these only DeepSpeed's copy of the weights
is called, and CUDA's wait for other kernels does nothing.
"""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import datasets
import torch
import transformers  # noqa: F401  looks for DeepSpeed when it is imported, and must not find the stand-in

STAND_INS = (
    *("deepspeed", "deepspeed.checkpoint", "deepspeed.checkpoint.utils"),
    *("deepspeed.runtime", "deepspeed.runtime.zero", "deepspeed.runtime.zero.partition_parameters"),
    *("flash_attn", "flash_attn.bert_padding", "flash_attn.utils", "flash_attn.utils.distributed"),
    *("pylatexenc", "torchdata", "torchdata.stateful_dataloader"),
)
for name in STAND_INS:
    sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
sys.modules["deepspeed.checkpoint.utils"].clone_tensors_for_torch_save = lambda weights: {
    name: weight.clone() for name, weight in weights.items()
}

from openrlhf.cli.serve_rm import RewardModelProxy  # noqa: E402
from openrlhf.datasets import RewardDataset  # noqa: E402
from openrlhf.models import get_llm_for_sequence_regression  # noqa: E402
from openrlhf.utils import get_tokenizer  # noqa: E402
from openrlhf.utils.deepspeed import DeepspeedStrategy  # noqa: E402


def main(base, output, prefix, items):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    torch.cuda.synchronize = lambda: None  # at the end of `save_model`
    save(base, output, prefix)
    server = load(output)
    scores = [score(server, item) for item in json.loads(items)]
    Path(f"{output}.json").write_text(json.dumps(scores))


def save(base, output, prefix):
    """As train_rm.py does after training, in bfloat16; the head's numbers are made larger, as training makes them."""
    model = get_llm_for_sequence_regression(
        base, "reward", attn_implementation="eager", init_value_head=True, value_head_prefix=prefix
    )
    getattr(model, prefix).weight.data *= 10
    model.config.value_head_prefix = prefix
    model.config.mean, model.config.std = 0.5, 2.0  # rm_trainer.py's, of the evaluation's scores
    args = SimpleNamespace(ds=SimpleNamespace(zero_stage=2, tensor_parallel_size=1))
    strategy = SimpleNamespace(is_rank_0=lambda: True, _unwrap_model=lambda model: model, args=args)
    DeepspeedStrategy.save_model(strategy, model, get_tokenizer(base, model, "left", None), output)


def load(path):
    """The model behind serve_rm.py, which loads it in bfloat16; the same numbers are computed with in float32."""
    server = RewardModelProxy(
        SimpleNamespace(
            reward=SimpleNamespace(model_name_or_path=path, normalize_enable=False),
            ds=SimpleNamespace(
                attn_implementation="eager",
                experts_implementation=None,
                param_dtype="bf16",
                load_in_4bit=False,
                value_head_prefix="score",
                packing_samples=False,
            ),
            data=SimpleNamespace(disable_fast_tokenizer=False, max_len=256),
            batch_size=None,
        )
    )
    server.reward_model.float()
    return server


def score(server, item):
    """Of a text or a chat by the dataset of the training, in a batch with a text that it is padded for."""
    chat = isinstance(item, list)
    longer = "to be padded " * 40
    row = {"chosen": item, "rejected": [{"role": "user", "content": longer}] if chat else longer}
    data = SimpleNamespace(chosen_key="chosen", rejected_key="rejected", apply_chat_template=chat)
    strategy = SimpleNamespace(args=SimpleNamespace(data=data))
    rows = RewardDataset(datasets.Dataset.from_list([row]), server.tokenizer, 256, strategy, num_processors=None)
    chosen, chosen_mask, rejected, rejected_mask, _ = rows.collate_fn([rows[0]])
    pad = rejected.shape[1] - chosen.shape[1]
    ids = torch.cat([torch.nn.functional.pad(chosen, (pad, 0), value=server.tokenizer.pad_token_id), rejected])
    mask = torch.cat([torch.nn.functional.pad(chosen_mask, (pad, 0)), rejected_mask])
    with torch.no_grad():
        return server.reward_model(ids, mask)[0].item()


if __name__ == "__main__":
    main(*sys.argv[1:])
