"""The measurements of gpu_check.py; each part runs in a process of its own, which this file is the program of.

python loadtests/gpu_steps.py STEP PART SETTING_AS_JSON FILE_OF_FIGURES
"""

import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import LLAMA_SHAPES, write_encoder, write_llama
from servers import end_on_sigterm, resident_bytes, service
from texts import ROOT, read_texts

TINY_DECODERS = ("llama", "qwen3", "gemma2")
TINY_ENCODERS = ("bert", "deberta-v2", "modernbert")
MODELS = (*TINY_DECODERS, *TINY_ENCODERS, "minilm")
PRECISIONS = ("fp32", "fp16", "bf16")
SIZES = ("tiny", *LLAMA_SHAPES)
TRANSFORMERS = "transformers"

# Of the large random model: its scores on long texts are no better a check than on short ones, and take long on a CPU.
_GOLDEN_MAX_TOKENS = 256
_NUM_SERVED_TEXTS = 256
_LEAST_OFFERED = 50  # requests, about, of which p50 and p99 are taken
_COMPLETIONS = 8
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 100
# A batch is as large as it needs to be when it reaches this share of the best rate.
_NEARLY_BEST = 0.95


@dataclass(frozen=True)
class Setting:
    """What all parts have in common.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`.
        size: Of the Llama whose speed and memory are measured.
        precision: Of that Llama, where only one is measured.
        seconds: How long one figure is measured.
        models: Of the parity.
        work: Folder of checkpoints and bundles.
    """

    device: str
    size: str
    precision: str
    seconds: float
    models: Sequence[str]
    work: str

    @property
    def measured(self) -> str:
        """The model whose speed and memory are measured."""
        return "llama" if self.size == "tiny" else f"llama-{self.size}"

    def checkpoint(self, model: str) -> Path:
        """Where its checkpoint is."""
        return Path(self.work) / "checkpoints" / model

    def bundle(self, model: str, precision: str) -> Path:
        """Where its bundle is, or will be."""
        return Path(self.work) / "bundles" / f"{model}-{precision}"

    def made_bundle(self, model: str, precision: str) -> Path:
        """Where its bundle is.

        Raises:
            FileNotFoundError: it was not made.
        """
        path = self.bundle(model, precision)
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there; make it with --only bundles")
        return path


class Figures:
    """What a part has measured, in a file that holds each figure at once.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._figures: dict[str, Any] = {}

    def put(self, **figures: Any) -> None:
        """Add figures; a list of mappings is a table. JSON has no infinity and no NaN: they are put down as words."""
        for name, value in figures.items():
            is_number = not isinstance(value, float) or math.isfinite(value)
            self._figures[name] = value if is_number else str(value)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._figures, allow_nan=False), encoding="utf-8")
        part.replace(self._path)


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
    figures.put(graph_bytes=_graph_bytes(bundle))


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


def measure_costs(part: str, setting: Setting, figures: Figures) -> None:
    """Milliseconds by tokens of one call, and what `Costs` would be by them, beside what it is."""
    from plaudit_service.serving.scorer import Scorer

    scorer = Scorer(setting.made_bundle(setting.measured, setting.precision), device=setting.device)
    costs = scorer.model.engine.costs
    figures.put(
        engine=scorer.identity.engine,
        call_tokens_today=costs.call_tokens,
        prefix_token_today=costs.prefix_token,
        batch_tokens_today=costs.batch_tokens,
    )
    calls = _time_calls(scorer, setting, figures)
    tokens, times = [call["tokens"] for call in calls], [call["ms"] / 1000 for call in calls]
    call_s, token_s = fit_calls(tokens, times)
    off = [abs(call_s + token_s * n - t) / t for n, t in zip(tokens, times, strict=True)]
    figures.put(
        call_ms=1000 * call_s,
        token_us=1e6 * token_s,
        call_tokens_fitted=call_s / token_s,
        largest_relative_error=max(off),
        batch_tokens_nearly_best=nearly_best(tokens, times),
    )
    behind = _time_prefixes(scorer, setting, figures)
    attended = [call["rows"] * call["prefix"] for call in behind]
    beyond = [(call["ms"] - call["ms_without"]) / 1000 for call in behind]
    figures.put(prefix_token_fitted=fit_prefix(attended, beyond, token_s))


def _time_calls(scorer: Any, setting: Setting, figures: Figures) -> list[dict[str, float]]:
    """Calls of ever more tokens."""
    engine, scoring, source = scorer.model.engine, scorer.bundle.scoring, random.Random(0)
    calls: list[dict[str, float]] = []
    for rows, length in call_shapes(min(512, scoring.max_tokens // 2), engine.costs.batch_tokens):
        batch = [_sequence(_random_ids(source, length, scoring.vocab_size)) for _ in range(rows)]
        seconds = _median_s(lambda batch=batch: engine.run(batch), setting.seconds / 3)
        calls.append({"rows": rows, "tokens": rows * length, "ms": 1000 * seconds})
        figures.put(calls=calls)
    return calls


def _time_prefixes(scorer: Any, setting: Setting, figures: Figures) -> list[dict[str, float]]:
    """Rows behind ever longer prefixes, each beside as many of the same length without one."""
    engine, scoring, source = scorer.model.engine, scorer.bundle.scoring, random.Random(1)
    rows, length = 8, max(2, min(128, scoring.max_tokens // 8))

    def batch_behind(start: list[int]) -> list[Any]:
        return [_sequence(start + _random_ids(source, length, scoring.vocab_size)) for _ in range(rows)]

    behind: list[dict[str, float]] = []
    for num_prefix in sorted({scoring.max_tokens // share for share in (8, 4, 2)}):
        start = _random_ids(source, num_prefix, scoring.vocab_size)
        prefix, batch, alone = engine.compute_prefix(np.array(start)), batch_behind(start), batch_behind([])
        with_s = _median_s(lambda batch=batch, prefix=prefix: engine.run(batch, prefix), setting.seconds / 3)
        without_s = _median_s(lambda batch=alone: engine.run(batch), setting.seconds / 3)
        shape = {"rows": rows, "tokens_of_a_row": length, "prefix": num_prefix}
        behind.append({**shape, "ms": 1000 * with_s, "ms_without": 1000 * without_s})
        figures.put(behind_a_prefix=behind)
    return behind


def call_shapes(length: int, most_tokens: int) -> list[tuple[int, int]]:
    """Rows and their length: single short rows, then 1, 2, 4, ... rows of the full length."""
    shapes = [(1, short) for short in (8, 32, 128) if short < length]
    rows = 1
    while rows == 1 or rows * length <= most_tokens:
        shapes.append((rows, length))
        rows *= 2
    return shapes


def fit_calls(tokens: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds of a call and of a token: least squares of (call + token x tokens - seconds) / seconds, call >= 0."""
    n, t = np.array(tokens, dtype=float), np.array(seconds, dtype=float)
    call_s, token_s = np.linalg.lstsq(np.stack([1 / t, n / t], axis=1), np.ones(len(t)), rcond=None)[0]
    if call_s < 0:
        return 0.0, float((n / t).sum() / np.square(n / t).sum())
    if token_s <= 0:
        raise ValueError("more tokens took no more time; measure for longer (--seconds)")
    return float(call_s), float(token_s)


def fit_prefix(attended: Sequence[float], beyond_s: Sequence[float], token_s: float) -> float:
    """What attending to a token of a prefix costs, as a part of computing one; least squares through 0.

    Args:
        attended: Rows x tokens of the prefix, of each call.
        beyond_s: Seconds of each call beyond those of the same rows without a prefix.
        token_s: Seconds of a computed token.
    """
    x = token_s * np.array(attended, dtype=float)
    return max(0.0, float((x * np.array(beyond_s)).sum() / np.square(x).sum()))


def nearly_best(tokens: Sequence[float], seconds: Sequence[float]) -> float:
    """The fewest tokens of a call that compute nearly as many per second as any."""
    rates = [n / t for n, t in zip(tokens, seconds, strict=True)]
    return min(n for n, rate in zip(tokens, rates, strict=True) if rate >= _NEARLY_BEST * max(rates))


def measure_prefix(part: str, setting: Setting, figures: Figures) -> None:
    """Completions behind one prompt: nothing shared, the prompt computed once, the prompt kept from before."""
    from plaudit_service.engine.prefixes import PrefixCache
    from plaudit_service.serving.scorer import Scorer

    scorer = Scorer(setting.made_bundle(setting.measured, setting.precision), device=setting.device)
    scoring = scorer.bundle.scoring
    num_prompt, num_completion = min(1024, scoring.max_tokens // 2), min(128, scoring.max_tokens // 8)
    figures.put(engine=scorer.identity.engine, prompt=num_prompt, completions=_COMPLETIONS, completion=num_completion)
    source = random.Random(0)
    prompt = _random_ids(source, num_prompt, scoring.vocab_size)
    cache = PrefixCache(scorer.model.engine.prefix_cache_bytes)

    def behind(start: list[int]) -> list[dict[str, list[int]]]:
        ends = (_random_ids(source, num_completion, scoring.vocab_size) for _ in range(_COMPLETIONS))
        return [{"token_ids": start + end} for end in ends]

    def ms(prefixes: PrefixCache | None, deal: Callable[[], Any]) -> float:
        scorer.model.prefixes = prefixes
        return 1000 * _median_s(lambda: _all_scored(scorer.score(deal()).floats), setting.seconds)

    figures.put(not_shared_ms=ms(None, lambda: behind(prompt)))
    figures.put(computed_once_ms=ms(cache, lambda: behind(_random_ids(source, num_prompt, scoring.vocab_size))))
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
        return [_random_ids(source, length, vocab_size) for length in lengths]

    def groups() -> list[list[int]]:
        prompts = [_random_ids(source, num_prompt, vocab_size) for _ in range(num_groups)]
        return [
            prompt + _random_ids(source, num_completion, vocab_size) for prompt in prompts for _ in range(_COMPLETIONS)
        ]

    for what, deal in (("texts", texts), ("groups", groups)):
        amount = sum(map(len, deal()))
        seconds = _median_s(lambda deal=deal: _all_scored(score(deal())), setting.seconds)
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
        graph_bytes=_graph_bytes(bundle),
        weights_bytes=loaded - before,
        prefix_cache_bytes=engine.prefix_cache_bytes,
    )
    source = random.Random(0)
    prefix = engine.compute_prefix(np.array(_random_ids(source, scoring.max_tokens // 4, scoring.vocab_size)))
    figures.put(prefix_bytes_per_token=prefix.num_bytes / prefix.num_tokens)
    calls: list[dict[str, int]] = []
    for length in sorted({scoring.max_tokens // share for share in (16, 4, 1)}):
        rows = max(1, engine.costs.batch_tokens // length)
        engine.run([_sequence(_random_ids(source, length, scoring.vocab_size)) for _ in range(rows)])
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


def _graph_bytes(bundle: Path) -> int:
    return sum(path.stat().st_size for path in bundle.glob("model.onnx*"))


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


def _random_ids(source: random.Random, length: int, vocab_size: int) -> list[int]:
    """Ids from the middle of a vocabulary: special tokens stand at its ends."""
    return source.choices(range(vocab_size // 10, vocab_size * 9 // 10), k=length)


def _sequence(ids: list[int]) -> Any:
    from plaudit_service.text.tokenization import TokenizedText

    return TokenizedText(np.array(ids), None, len(ids), truncated=False)


def _all_scored(scores: Sequence[float]) -> None:
    assert np.isfinite(scores).all(), "a score is missing"


def _median_s(run: Callable[[], object], seconds: float) -> float:
    """Median time of a call that waits for its result, after two that are not counted."""
    for _ in range(2):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST_ROUNDS or (len(times) < _MOST_ROUNDS and time.perf_counter() < end):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


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
