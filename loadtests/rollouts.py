"""Completion tokens per second of the local sampler and of a vLLM server, side by side, at lengths that vary.

    python loadtests/rollouts.py --vllm .venv-vllm        # or: make bench-rollouts

A random Llama of 65 million parameters; a share of its tokens ends a completion, so that lengths vary from one token
to the limit. Both compute in float32 with the same number of threads. The engine has to have the policy's logprobs
before it is timed. Prints a table and one line of JSON.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plaudit_ppo import PPOConfig
from plaudit_ppo.distributed.learner import Learner
from plaudit_ppo.engine.sampler import EngineSampler
from plaudit_ppo.rollout.samplers import LocalSampler, Sampler

VOCABULARY, PROMPT_TOKENS, PAD = 32_000, 32, 1
START_S = 600


def make_policy(directory: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A random policy and its tokenizer, also in a directory."""
    core = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w2"))  # noqa: S106
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="w0", pad_token="w1")  # noqa: S106
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1408, num_hidden_layers=10, num_attention_heads=8,
        max_position_embeddings=1024, bos_token_id=None, eos_token_id=0, pad_token_id=PAD,
    )  # fmt: skip
    torch.manual_seed(0)
    policy = LlamaForCausalLM(config).eval()
    policy.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return policy, tokenizer


@contextmanager
def vllm_server(environment: Path, directory: Path, threads: int) -> Iterator[str]:
    """Yields the address of a server of a policy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        **os.environ,
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_TARGET_DEVICE": "cpu",
    }
    variables.pop("PYTHONPATH", None)
    command = [
        environment / "bin" / "python", "-m", "vllm.entrypoints.openai.api_server", "--model", directory,
        "--served-model-name", "policy", "--host", "127.0.0.1", "--port", port, "--dtype", "float32", "--enforce-eager",
        "--max-model-len", 1024, "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", 16384,
    ]  # fmt: skip
    with (
        (directory / "vllm.log").open("wb") as log,
        subprocess.Popen([*map(str, command)], env=variables, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Returns when the server is healthy."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urlopen(f"{url}/health", timeout=5):  # noqa: S310  # an address of ours
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise SystemExit("the vLLM server did not start")


def measure(sampler: Sampler, prompts: Sequence[Sequence[int]], *, repeats: int) -> dict[str, float]:
    """Tokens per second, median of some batches after one that is not counted, and the lengths of the last one."""
    sampler.publish(0)
    rates, lengths = [], torch.zeros(1)
    for iteration in range(repeats + 1):
        start = time.perf_counter()
        with sampler.sampling(prompts, iteration=iteration) as parts:
            lengths = torch.cat([part.completion_mask.sum(1) for part in parts]).float()
        rates.append(float(lengths.sum()) / (time.perf_counter() - start))
    low, high = lengths.quantile(torch.tensor([0.05, 0.95])).tolist()
    return {"tokens_per_second": statistics.median(rates[1:]), "length_p5": low, "length_p95": high}


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, required=True, help="environment that has vLLM")
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    accelerator = Accelerator(cpu=True)
    # Random logits are nearly uniform, so a completion has about 48 tokens, geometrically distributed.
    eos_ids = range(2, 2 + VOCABULARY // 48)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(2, VOCABULARY, (options.rollouts, PROMPT_TOKENS), generator=generator).tolist()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        policy, tokenizer = make_policy(Path(folder))
        sizes = {"rollout_batch_size": options.rollouts, "rollout_micro_batch_size": options.rollouts}
        config = PPOConfig(output=f"{folder}/run", max_completion_tokens=options.max_tokens, temperature=1.0, **sizes)
        learner = Learner(policy, policy, (), accelerator, 0.0)  # type: ignore[arg-type]  # nothing is learned
        local = LocalSampler(
            config, learner.generating, eos_ids=eos_ids, pad_id=PAD, device=torch.device("cpu"), rank=0
        )
        results["local"] = measure(local, prompts, repeats=options.repeats)
        with vllm_server(options.vllm, Path(folder), options.threads) as url:
            by_engine = PPOConfig(
                output=f"{folder}/run", max_completion_tokens=options.max_tokens, temperature=1.0, sampler="vllm",
                engine_urls=(url,), **sizes,
            )  # fmt: skip
            engine = EngineSampler(by_engine, learner, tokenizer, prompts, eos_ids=eos_ids, pad_id=PAD)
            results["vllm"] = measure(engine, prompts, repeats=options.repeats)
            results["vllm"]["canary_error"] = engine.canary_error or 0.0
    print("| sampler | tokens/s | lengths, 5 % to 95 % |\n|---|---|---|")
    for name, figures in results.items():
        lengths = f"{figures['length_p5']:.0f} to {figures['length_p95']:.0f}"
        print(f"| {name} | {figures['tokens_per_second']:.0f} | {lengths} |")
    print(json.dumps({"options": {**vars(options), "vllm": str(options.vllm)}, **results}))


if __name__ == "__main__":
    main()
