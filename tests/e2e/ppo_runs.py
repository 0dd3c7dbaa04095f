"""`plaudit-ppo train` as a process: a tiny policy that writes the words of the tiny bundle, and what a run has left."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plaudit_ppo import PPOConfig
from plaudit_ppo.runs.log import read_log
from plaudit_ppo.settings_text import to_toml

COMMAND = str(Path(sys.executable).with_name("plaudit-ppo"))
WORDS = ["<eos>", "<pad>", "good", "fine", "bad", "awful", "so", "very"]


def write_policy(path, hidden_size=32, num_attention_heads=4, head_dim=8, **settings):
    """A random Llama and its word-level tokenizer, which is not the reward model's."""
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="so"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>").save_pretrained(path)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=hidden_size, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=num_attention_heads, head_dim=head_dim, max_position_embeddings=32, bos_token_id=None,
        eos_token_id=0, pad_token_id=1, initializer_range=0.2, **settings,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(path)
    return path


def write_config(path, **settings):
    path.write_text(to_toml(PPOConfig(**settings)))
    return path


@contextmanager
def training(*arguments, wrapper=()):
    """A `plaudit-ppo train` process, started by a wrapper; killed at the end of the block if it still runs."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("PLAUDIT_URL", None)
    command = [*wrapper, COMMAND, "train", *map(str, arguments)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def train_to_the_end(*arguments):
    with training(*arguments) as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def wait_for_iterations(process, output, count):
    """Returns when the log of a running training has so many lines; fails when the training ends before."""
    wait_until(lambda: len(read_log(output / "log.jsonl")) >= count, process)


def wait_until(condition, process, timeout_s=120):
    """Returns when a training has come so far; fails when it ends before."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


def weights(output):
    """The bytes of the result."""
    return [(output / name / "model.safetensors").read_bytes() for name in ("policy", "critic")]


def figures(output):
    """The log without what depends on clocks and on the network."""
    varying = ("time/", "scoring/call_s", "scoring/exposed_wait_s", "scoring/retries")
    return [{k: v for k, v in line.items() if not k.startswith(varying)} for line in read_log(output / "log.jsonl")]


def evaluations(output):
    """The evaluations on held-out prompts without their times, and which checkpoint is the best."""
    lines = read_log(output / "evaluations.jsonl")
    best = (output / "checkpoints" / "best").readlink().name
    assert (output / "checkpoints" / best / "state.json").exists()
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines], best


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
