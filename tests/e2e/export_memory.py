"""Measures what `plaudit-export checkpoint` needs for a large checkpoint of random weights: memory and time.

    .venv/bin/python tests/e2e/export_memory.py             # a decoder of 2.4 GB, in fp32, fp16 and bf16
    .venv/bin/python tests/e2e/export_memory.py --experts   # a mixture of experts of 1.0 GB, in fp32
    .venv/bin/python tests/e2e/export_memory.py --engine    # the decoder, for a vLLM server: without a graph

Both are stored in bfloat16, as most models are. It needs about 6 GB in the directory for temporary files, and memory
for one and a half times the weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from plaudit_export.testing import tiny_causal_checkpoint

HEAD_SIZE = 64
DECODER = {
    "architectures": ["LlamaForSequenceClassification"],
    "model_type": "llama",
    "hidden_size": 3072,
    "intermediate_size": 8448,
    "num_hidden_layers": 5,
    "num_attention_heads": 48,
    "num_key_value_heads": 12,
    "head_dim": HEAD_SIZE,
    "vocab_size": 32_000,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}
EXPERTS = DECODER | {
    "architectures": ["Qwen3MoeForSequenceClassification"],
    "model_type": "qwen3_moe",
    "hidden_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
}


def main() -> None:
    """Make the checkpoint, export it, and print what each export needed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", action="store_true", help="a mixture of experts")
    parser.add_argument("--engine", action="store_true", help="for a vLLM server")
    parser.add_argument("--precision", nargs="+", help="one or several, instead of those")
    parser.add_argument("--golden-max-tokens", default="128", help="of the longest golden text (default: 128)")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / "checkpoint"
        weights_bytes = write_checkpoint(checkpoint, EXPERTS if parsed.experts else DECODER)
        default = ["fp32"] if parsed.experts or parsed.engine else ["fp32", "fp16", "bf16"]
        for precision in parsed.precision or default:
            flags = ["--precision", precision, "--golden-max-tokens", parsed.golden_max_tokens, "--force"]
            flags += ["--engine", "vllm"] if parsed.engine else []
            peak_bytes, own_bytes, seconds = run("checkpoint", checkpoint, Path(directory) / "bundle", *flags)
            print(
                f"{precision}: weights {weights_bytes / 1e9:.2f} GB in float32, peak {peak_bytes / 1e9:.2f} GB "
                f"({peak_bytes / weights_bytes:.2f} x), without mapped files {own_bytes / 1e9:.2f} GB, {seconds:.0f} s",
                flush=True,
            )


def run(*arguments: str | Path) -> tuple[int, int, float]:
    """Run plaudit-export; its largest memory in bytes, and how long it took in seconds.

    Memory is what was resident (VmHWM), and what of it is mapped from no file (RssAnon), looked at 20 times a second.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [Path(sys.executable).with_name("plaudit-export"), *arguments], stdout=subprocess.DEVNULL
    )
    own_kib = 0
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        fields = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        own_kib = max(own_kib, int(fields.partition("RssAnon:")[2].split()[0]) if "RssAnon:" in fields else 0)
        time.sleep(0.05)
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    return usage.ru_maxrss * 1024, own_kib * 1024, time.perf_counter() - started


def write_checkpoint(path: Path, sizes: dict[str, object]) -> int:
    """Write a checkpoint of these sizes with random weights; their bytes in float32."""
    tiny_causal_checkpoint(path, chat_template=None, num_hidden_layers=1)
    config = json.loads((path / "config.json").read_text(encoding="utf-8")) | sizes
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (path / "model.safetensors").unlink()
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(
            transformers.AutoConfig.from_pretrained(path)
        )
    files, num_numbers = {}, 0
    for number, (name, weight) in enumerate(stored(model)):
        file = f"model-{number:05}.safetensors"
        save_file({name: weight}, path / file, {"format": "pt"})
        files[name] = file
        num_numbers += weight.numel()
    index = {"metadata": {"total_size": 2 * num_numbers}, "weight_map": files}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return 4 * num_numbers


def stored(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Random weights one after the other, experts each under names of their own, as checkpoints hold them."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            yield name, torch.ones(parameter.shape, dtype=torch.bfloat16)
            continue
        std = 1.0 if "embed" in name else parameter.shape[-1] ** -0.5
        weight = (torch.randn(parameter.shape, generator=generator) * std).bfloat16()
        if parameter.dim() == 2:
            yield name, weight
        for expert, own in enumerate(weight if parameter.dim() == 3 else ()):
            prefix, _, kind = name.rpartition(".")
            parts = dict(zip(("gate_proj", "up_proj"), own.chunk(2), strict=True)) if "gate" in kind else {kind: own}
            for part, part_weight in parts.items():
                yield f"{prefix}.{expert}.{part}.weight", part_weight.contiguous()


if __name__ == "__main__":
    main()
