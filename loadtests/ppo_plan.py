"""`plaudit-ppo plan` against the memory that runs really take.

    python loadtests/ppo_plan.py [CASE...]

Each case is a run of two iterations with random networks in a process of its own. Measured is the highest resident
memory of that process, less what it had before it made the networks. The allocator is told to give back what is freed.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SMALL = {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8}  # 58M
MIDDLE = {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}  # 134M
LARGE = {"vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 18}  # 297M
SHORT = {"max_prompt_tokens": 64, "max_completion_tokens": 64}
LONG = {"max_prompt_tokens": 32, "max_completion_tokens": 224, "micro_batch_size": 8, "gradient_checkpointing": True}


@dataclass(frozen=True)
class Case:
    """A network's shape and the settings of a run."""

    shape: dict[str, int]
    settings: dict[str, Any]


CASES = {
    "58M": Case(SMALL, {"micro_batch_size": 4}),
    "58M batch 16": Case(SMALL, {"micro_batch_size": 16, "rollout_batch_size": 16, "rollout_micro_batch_size": 16}),
    "58M checkpointed": Case(SMALL, {"micro_batch_size": 16, "rollout_batch_size": 16, "gradient_checkpointing": True}),
    "58M chunks": Case(SMALL, {"micro_batch_size": 16, "rollout_batch_size": 16, "logits_chunk_tokens": 64}),
    "58M long": Case(SMALL, LONG),
    "58M long, chunks": Case(SMALL, {**LONG, "logits_chunk_tokens": 128}),
    "134M": Case(MIDDLE, {"micro_batch_size": 2}),
    "134M bfloat16": Case(MIDDLE, {"micro_batch_size": 4, "precision": "bfloat16"}),
    "134M LoRA": Case(MIDDLE, {"micro_batch_size": 4, "lora_rank": 8}),
    "297M LoRA, head": Case(LARGE, {"micro_batch_size": 2, "lora_rank": 8, "critic_trunk": "policy"}),
    "297M": Case(LARGE, {"micro_batch_size": 2, "gradient_checkpointing": True}),
}


def settings_of(case: Case) -> dict[str, Any]:
    """All that the run is given."""
    small = {"iterations": 2, "epochs": 1, "rollout_batch_size": 8, "rollout_micro_batch_size": 8, "sample_every": 0}
    return {**small, **SHORT, **case.settings}


def planned(case: Case) -> tuple[int, str]:
    """Bytes, and the phase that takes them."""
    from plaudit_ppo.config import PPOConfig
    from plaudit_ppo.planning.plan import NetworkConfigs, make_plan

    network = _network(case)
    plan = make_plan(PPOConfig(**settings_of(case)), NetworkConfigs(network, network), processes=1, device="cpu")
    return plan.peak, plan.peak_phase


def measured(name: str) -> int:
    """Bytes of a process that runs the case."""
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    command = [sys.executable, __file__, "--run", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def _network(case: Case) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        num_attention_heads=8, num_labels=1, bos_token_id=None, eos_token_id=0, pad_token_id=1, **case.shape
    )


def _run(case: Case) -> int:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    from plaudit_client import Score
    from plaudit_ppo import Critic, PPOConfig, PPOTrainer, Prompt, TrunkCritic, add_lora, frozen_copy

    settings, network = settings_of(case), _network(case)
    words = {f"w{number}": number for number in range(network.vocab_size)}
    core = Tokenizer(models.WordLevel(words, unk_token="w2"))  # noqa: S106 - a word
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "w0", "pad_token": "w1"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    prompts = [Prompt(text=" ".join(["w5"] * settings["max_prompt_tokens"]))]

    def score(items: Any) -> list[Score]:
        return [Score("ok", float(len(item["completion"]) % 7)) for item in items]

    with TemporaryDirectory() as output:
        config = PPOConfig(output=str(Path(output) / "run"), **settings)
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        policy = LlamaForCausalLM(network).eval()
        critic: Any
        if config.critic_trunk == "policy":
            critic = TrunkCritic(policy, head_init="zero", generator=torch.Generator())
        else:
            critic = Critic(LlamaForSequenceClassification(network))
        reference = None if config.lora_rank else frozen_copy(policy)
        if config.lora_rank:
            policy = add_lora(policy, config)
        PPOTrainer(config, policy, reference, critic, tokenizer, prompts, score).train()
        return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--run", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps({"bytes": _run(CASES[arguments.run])}))
        return
    print("| run | planned, GB | in | measured, GB | planned / measured |\n|---|---|---|---|---|")
    for name in arguments.cases or CASES:
        (plan, phase), real = planned(CASES[name]), measured(name)
        print(f"| {name} | {plan / 1e9:.2f} | {phase} | {real / 1e9:.2f} | {plan / real:.2f} |", flush=True)


if __name__ == "__main__":
    main()
