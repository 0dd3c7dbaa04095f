"""The measurements of gpu_check.py; each part runs in a process of its own, which this file is the program of.

python loadtests/gpu_steps.py STEP PART SETTING_AS_JSON FILE_OF_FIGURES
"""

import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import LLAMA_SHAPES, write_encoder, write_llama
from gpu_costs import measure_costs
from gpu_measuring import (
    MODELS,
    TINY_DECODERS,
    TINY_ENCODERS,
    TRANSFORMERS,
    Figures,
    Setting,
    all_scored,
    median_s,
    random_ids,
    sequence,
)
from servers import end_on_sigterm, resident_bytes, service
from texts import ROOT, read_texts

from plaudit_service.engine.calls import graph_bytes

# Of the large random model: its scores on long texts are no better a check than on short ones, and take long on a CPU.
_GOLDEN_MAX_TOKENS = 256
_NUM_SERVED_TEXTS = 256
_LEAST_OFFERED = 50  # requests, about, of which p50 and p99 are taken
_COMPLETIONS = 8


def require_device(part: str, setting: Setting, figures: Figures) -> None:
    """Raise where the device cannot be used, as the service does."""
    if setting.device != "cpu":
        from plaudit_service.engine.onnx_runtime_cuda import require_device

        require_device(_device_id(setting))


def measure_versions(part: str, setting: Setting, figures: Figures) -> None:
    """Machine, driver, packages, providers."""
    figures.put(machine=platform.machine(), python=platform.python_version(), cores=len(os.sched_getaffinity(0)))
    packages = ("plaudit", "onnxruntime", "onnxruntime-gpu", "torch", "transformers", "onnx", "numpy")
    figures.put(**{name: _version(name) for name in packages})
    figures.put(commit=_said("git", "-C", str(ROOT), "rev-parse", "HEAD"))
    fields = "name,driver_version,memory.total,compute_cap"
    figures.put(nvidia_smi=_said("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"))
    import onnxruntime

    figures.put(providers=", ".join(onnxruntime.get_available_providers()))
    import torch

    figures.put(torch_cuda=torch.version.cuda or "none", torch_sees=torch.cuda.device_count())


def make_bundle(part: str, setting: Setting, figures: Figures) -> None:
    """Write a random checkpoint and export it; what is there is kept. Computes on the CPU."""
    model, _, precision = part.rpartition("-")
    bundle, checkpoint = setting.bundle(model, precision), setting.checkpoint(model)
    figures.put(was_there=bundle.exists())
    if not bundle.exists():
        if not (checkpoint / "tokenizer.json").exists():  # written last
            _write_checkpoint(model, checkpoint)
        bundle.parent.mkdir(parents=True, exist_ok=True)
        command = [str(Path(sys.executable).with_name("plaudit-export")), "checkpoint", str(checkpoint), str(bundle)]
        command += ["--precision", precision]
        if precision != "fp32":
            command.append("--allow-loss")  # random models rank as they like
        if model not in MODELS:
            command += ["--golden-max-tokens", str(_GOLDEN_MAX_TOKENS)]
        export = subprocess.run(command, stdout=sys.stderr, check=False)
        if export.returncode:
            sys.exit(export.returncode)  # it has said why
    figures.put(graph_bytes=graph_bytes(bundle))


def check_parity(part: str, setting: Setting, figures: Figures) -> None:
    """The check that a service makes at its start; distances also in standard deviations of the reference scores."""
    from plaudit_service.serving import parity
    from plaudit_service.serving.scorer import Scorer

    model, _, precision = part.rpartition("-")
    scorer = Scorer(setting.made_bundle(model, precision), device=setting.device)
    report = parity.check(scorer)
    std = statistics.pstdev(row.reference for row in report.rows)
    figures.put(
        engine=scorer.identity.engine,
        texts=len(report.rows),
        largest_distance=report.max_abs_diff,
        in_standard_deviations=report.max_abs_diff / std,
        of_what_is_allowed=report.worst.difference / report.worst.allowed,
        between_batches=report.batch_max_abs_diff,
    )
    if not report.ok:
        raise AssertionError(report.describe_worst())


def measure_prefix(part: str, setting: Setting, figures: Figures) -> None:
    """Completions behind one prompt: nothing shared, the prompt computed once, the prompt kept from before."""
    from plaudit_service.engine.prefixes import PrefixCache
    from plaudit_service.serving.scorer import Scorer

    scorer = Scorer(setting.made_bundle(setting.measured, setting.precision), device=setting.device)
    scoring = scorer.bundle.scoring
    num_prompt, num_completion = min(1024, scoring.max_tokens // 2), min(128, scoring.max_tokens // 8)
    figures.put(engine=scorer.identity.engine, prompt=num_prompt, completions=_COMPLETIONS, completion=num_completion)
    source = random.Random(0)
    prompt = random_ids(source, num_prompt, scoring.vocab_size)
    cache = PrefixCache(scorer.model.engine.prefix_cache_bytes)

    def behind(start: list[int]) -> list[dict[str, list[int]]]:
        ends = (random_ids(source, num_completion, scoring.vocab_size) for _ in range(_COMPLETIONS))
        return [{"token_ids": start + end} for end in ends]

    def ms(prefixes: PrefixCache | None, deal: Callable[[], Any]) -> float:
        scorer.model.prefixes = prefixes
        return 1000 * median_s(lambda: all_scored(scorer.score(deal()).floats), setting.seconds)

    figures.put(not_shared_ms=ms(None, lambda: behind(prompt)))
    figures.put(computed_once_ms=ms(cache, lambda: behind(random_ids(source, num_prompt, scoring.vocab_size))))
    figures.put(kept_ms=ms(cache, lambda: behind(prompt)))
    items = behind(prompt)
    kept = scorer.score(items).floats
    scorer.model.prefixes = None
    alone = scorer.score(items).floats
    figures.put(largest_distance=max(abs(a - b) for a, b in zip(kept, alone, strict=True)))


def measure_throughput(part: str, setting: Setting, figures: Figures) -> None:
    """Tokens per second, those of the texts without padding: whole texts, and groups that share their prompt."""
    if part == TRANSFORMERS:
        score, vocab_size, max_tokens, name = _transformers(setting)
    else:
        from plaudit_service.serving.scorer import Scorer

        scorer = Scorer(setting.made_bundle(setting.measured, part), device=setting.device)
        scoring = scorer.bundle.scoring
        vocab_size, max_tokens, name = scoring.vocab_size, scoring.max_tokens, scorer.identity.engine

        def score(sequences: Sequence[list[int]]) -> list[float]:
            return scorer.score([{"token_ids": ids} for ids in sequences]).floats

    figures.put(engine=name)
    source = random.Random(0)
    batch_tokens = _batch_tokens(setting)
    lengths = text_lengths(min(1024, max_tokens), 4 * batch_tokens)
    num_prompt, num_completion = min(512, max_tokens // 2), min(128, max_tokens // 8)
    num_groups = max(1, 4 * batch_tokens // (_COMPLETIONS * (num_prompt + num_completion)))

    def texts() -> list[list[int]]:
        return [random_ids(source, length, vocab_size) for length in lengths]

    def groups() -> list[list[int]]:
        prompts = [random_ids(source, num_prompt, vocab_size) for _ in range(num_groups)]
        return [
            prompt + random_ids(source, num_completion, vocab_size) for prompt in prompts for _ in range(_COMPLETIONS)
        ]

    for what, deal in (("texts", texts), ("groups", groups)):
        amount = sum(map(len, deal()))
        seconds = median_s(lambda deal=deal: all_scored(score(deal())), setting.seconds)
        figures.put(**{f"{what}_tokens": amount, f"{what}_tokens_per_s": amount / seconds})


def text_lengths(longest: int, total: int) -> list[int]:
    """Different lengths up to the longest, the same in every process, until they add up."""
    source, lengths = random.Random(1), list[int]()
    while sum(lengths) < total:
        lengths.append(source.randint(max(2, longest // 16), longest))
    return lengths


def _transformers(setting: Setting) -> tuple[Callable[[Sequence[list[int]]], list[float]], int, int, str]:
    """A good handler by hand: bfloat16, sdpa, sorted by length, batches as large as the service's; nothing shared."""
    import torch
    from transformers import AutoModelForSequenceClassification

    checkpoint, limit = setting.checkpoint(setting.measured), _batch_tokens(setting)
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    model = model.to(setting.device).eval()
    pad = model.config.pad_token_id

    def run(rows: Sequence[list[int]]) -> list[float]:
        length = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=setting.device)
        keep = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=setting.device)
        values: list[float] = model(input_ids=ids, attention_mask=keep, use_cache=False).logits[:, 0].float().tolist()
        return values

    @torch.inference_mode()
    def score(sequences: Sequence[list[int]]) -> list[float]:
        ordered = sorted(sequences, key=len, reverse=True)
        scores: list[float] = []
        while ordered:
            rows = max(1, limit // len(ordered[0]))
            scores += run(ordered[:rows])
            ordered = ordered[rows:]
        return scores

    return score, model.config.vocab_size, model.config.max_position_embeddings, "transformers, sdpa, bfloat16"


def measure_memory(part: str, setting: Setting, figures: Figures) -> None:
    """Memory of the weights, and the most that calls have taken; on a device what its driver says is taken."""
    from plaudit_service.serving.scorer import Scorer

    bundle = setting.made_bundle(setting.measured, part)
    require_device(part, setting, figures)
    before = _taken_bytes(setting)
    scorer = Scorer(bundle, device=setting.device)
    engine, scoring = scorer.model.engine, scorer.bundle.scoring
    loaded = _taken_bytes(setting)
    figures.put(
        engine=engine.name,
        graph_bytes=graph_bytes(bundle),
        weights_bytes=loaded - before,
        prefix_cache_bytes=engine.prefix_cache_bytes,
    )
    source = random.Random(0)
    prefix = engine.compute_prefix(np.array(random_ids(source, scoring.max_tokens // 4, scoring.vocab_size)))
    figures.put(prefix_bytes_per_token=prefix.num_bytes / prefix.num_tokens)
    calls: list[dict[str, int]] = []
    for length in sorted({scoring.max_tokens // share for share in (16, 4, 1)}):
        rows = max(1, engine.costs.batch_tokens // length)
        engine.run([sequence(random_ids(source, length, scoring.vocab_size)) for _ in range(rows)])
        calls.append({"rows": rows, "length": length, "bytes_taken_since_loading": _taken_bytes(setting) - loaded})
        figures.put(calls=calls)


def measure_service(part: str, setting: Setting, figures: Figures) -> None:
    """`plaudit-serve`: its start, what 64 waiting clients get, and latencies at half of that."""
    import asyncio

    from load_report import measure_capacity, run_step

    bundle = setting.made_bundle(setting.measured, setting.precision)
    texts = read_texts(bundle).singles(0, _NUM_SERVED_TEXTS)
    with service(bundle, flags=["--device", setting.device]) as server:
        (model,) = json.loads(server.get("/info"))["models"]
        figures.put(engine=model["engine"], start_s=server.start_s)
        capacity = measure_capacity(server, texts)
        figures.put(capacity_requests_per_s=capacity)
        rate = capacity / 2
        seconds = max(5 * setting.seconds, _LEAST_OFFERED / rate)
        step = asyncio.run(run_step(server, texts, rate, seconds, deadline_s=30.0))
        figures.put(offered_requests_per_s=step.offered, share_in_time=step.share_in_time)
        if step.share_in_time > 0:
            figures.put(p50_ms=1000 * step.p50_s, p99_ms=1000 * step.p99_s)
        if step.share_in_time < 1:
            raise AssertionError(f"{step.share_in_time:.1%} of the requests were scored within 30 s")


STEPS: Mapping[str, Callable[[str, Setting, Figures], None]] = {
    "device": require_device,
    "versions": measure_versions,
    "bundles": make_bundle,
    "parity": check_parity,
    "costs": measure_costs,
    "prefix": measure_prefix,
    "throughput": measure_throughput,
    "memory": measure_memory,
    "service": measure_service,
}


def _write_checkpoint(model: str, path: Path) -> None:
    from plaudit_export.testing import tiny_causal_checkpoint, tiny_encoder_checkpoint

    if model in TINY_DECODERS:
        tiny_causal_checkpoint(path, architecture=model)
    elif model in TINY_ENCODERS:
        tiny_encoder_checkpoint(path, architecture=model)
    elif model == "minilm":
        write_encoder(path)
    else:
        write_llama(path, LLAMA_SHAPES[model.removeprefix("llama-")], dtype="bfloat16")


def _batch_tokens(setting: Setting) -> int:
    """Of one call, by default; known without a loaded graph, as transformers is given the same."""
    from plaudit_service.engine.onnx_runtime import OnnxRuntime
    from plaudit_service.engine.onnx_runtime_cuda import OnnxRuntimeCuda

    return (OnnxRuntime if setting.device == "cpu" else OnnxRuntimeCuda).costs.batch_tokens


def _taken_bytes(setting: Setting) -> int:
    """Memory of this process on the CPU; on a device what it has less, so that only differences mean anything."""
    if setting.device == "cpu":
        return resident_bytes(os.getpid())
    from plaudit_service.engine.onnx_runtime_cuda import free_memory_bytes

    free_bytes = free_memory_bytes(_device_id(setting))
    if free_bytes is None:
        raise RuntimeError(f"--device {setting.device} does not say how much of its memory is free")
    return -free_bytes


def _device_id(setting: Setting) -> int:
    return int(setting.device.partition(":")[2] or 0)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _said(*command: str) -> str:
    """What a command prints, or that it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{command[0]} failed: {type(error).__name__}"
    return "; ".join(done.stdout.strip().splitlines())


if __name__ == "__main__":
    end_on_sigterm()
    STEPS[sys.argv[1]](sys.argv[2], Setting(**json.loads(sys.argv[3])), Figures(Path(sys.argv[4])))
