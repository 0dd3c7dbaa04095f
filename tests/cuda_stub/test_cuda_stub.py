"""The engine on a CUDA device, as far as it shows without one: on a stub of the CUDA libraries (README.md beside this).

`make test-cuda-stub` builds the stub and runs this. Bundles are made here, the engine runs in the stub's environment.
"""

import json
import os
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import onnx
import pytest
from calls_on_stub import LONGER_PREFIX, PREFIX, ROWS, TOKENS
from stub_log import Section, sections

from plaudit_export.checkpoints.rules import Options, Precision
from plaudit_export.exporter import export_checkpoint
from plaudit_export.testing import CAUSAL_ARCHITECTURES, tiny_causal_checkpoint, tiny_encoder_checkpoint

pytestmark = pytest.mark.slow

DEVICE_BYTES = 8 << 30
MIB = 1 << 20

# Heads of 64 numbers, as flash attention takes them.
HIDDEN, INTERMEDIATE = 256, 512
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
# With the vocabulary of Llama 3, its weights are to a call here as those of 8B parameters to one of 16,384 tokens.
MODELS = {
    "llama": ("llama", {"vocab_size": 128_256}),
    "qwen3": ("qwen3", {"head_dim": 64}),
    "gemma2": ("gemma2", {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 1024}),
    "mistral": ("mistral", {}),
    "mistral-with-window": ("mistral", {"sliding_window": 256}),
    "phi3": ("phi3", {}),
    "bert": ("bert", {}),
    "deberta-v2": ("deberta-v2", {}),
    "modernbert": ("modernbert", {}),
}
PRECISIONS = tuple(precision for precision in get_args(Precision) if precision != "int8")
CASES = [f"{model}-{precision}" for model in MODELS for precision in PRECISIONS]
REDUCED = [case for case in CASES if not case.endswith("fp32")]
ITEMSIZES = {"fp32": 4, "fp16": 2, "bf16": 2}
# Sections of the log: tokens of the prefix before, of the longest row in whole, whether keys and values are asked for.
CALLS = {
    "call": (0, TOKENS, False),
    "again": (0, TOKENS, False),
    "shorter": (0, TOKENS - 2, False),
    "prefix": (0, PREFIX, True),
    "behind prefix": (PREFIX, TOKENS, False),
    "longer prefix": (PREFIX, LONGER_PREFIX, True),
    "behind longer prefix": (LONGER_PREFIX, TOKENS, False),
}


@dataclass(frozen=True)
class Stub:
    """An environment with onnxruntime-gpu, and the stub's libraries in it."""

    path: Path

    def environment(self, **variables):
        """Variables of a process that finds the stub."""
        libraries = {"LD_LIBRARY_PATH": str(self.path / "stub"), "FAKECUDA_MEM": str(DEVICE_BYTES)}
        return os.environ | libraries | variables

    def run(self, program, *arguments, **variables):
        """Run a program of the environment."""
        command = [self.path / "bin" / program, *arguments]
        return subprocess.run(command, env=self.environment(**variables), capture_output=True, text=True)

    def calls(self, bundle, log, device="cuda", **variables):
        """What the engine said of itself, and the sections of the log."""
        program = Path(__file__).with_name("calls_on_stub.py")
        done = self.run("python", program, bundle, device, FAKECUDA_LOG=str(log), **variables)
        assert done.returncode == 0, done.stderr
        with log.open() as lines:
            return json.loads(done.stdout), sections(lines)


@dataclass(frozen=True)
class Observed:
    """A bundle's graph, and what its engine did with it on the stub."""

    model: str
    precision: str
    graph: onnx.ModelProto
    said: dict
    sections: dict[str, Section]

    @property
    def is_causal(self):
        return MODELS[self.model][0] in CAUSAL_ARCHITECTURES

    @property
    def inputs(self):
        return {value.name for value in self.graph.graph.input}

    @property
    def weight_bytes(self):
        """Of weights alone; what shapes are made with is small."""
        return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in self.graph.graph.initializer)


@pytest.fixture(scope="module")
def stub():
    path = os.environ.get("PLAUDIT_CUDA_STUB", "")
    if not (Path(path) / "stub" / "libfakecuda.so").is_file():
        pytest.skip("no CUDA stub: `make test-cuda-stub` builds it where g++ and binutils are")
    return Stub(Path(path).absolute())


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Makes bundles, each once: `bundles("llama-fp16")`."""
    folder = tmp_path_factory.mktemp("cuda-stub")

    def bundle(case):
        if not (folder / case).exists():
            model, precision = case.rsplit("-", 1)
            architecture, fields = MODELS[model]
            checkpoint = folder / f"{model}-checkpoint"
            if not checkpoint.exists():
                make = tiny_causal_checkpoint if architecture in CAUSAL_ARCHITECTURES else tiny_encoder_checkpoint
                make(checkpoint, architecture=architecture, **SIZES | fields)
            options = Options(precision=precision, golden_max_tokens=64, allow_loss=True)
            export_checkpoint(str(checkpoint), folder / case, options)
        return folder / case

    return bundle


@pytest.fixture(scope="module")
def observe(stub, bundles, tmp_path_factory):
    """What the engine does with a bundle on the stub, each observed once."""
    observed = {}

    def observation(case):
        if case not in observed:
            said, found = stub.calls(bundles(case), tmp_path_factory.mktemp("log") / "log")
            graph = onnx.shape_inference.infer_shapes(onnx.load(bundles(case) / "model.onnx"))
            observed[case] = Observed(*case.rsplit("-", 1), graph, said, found)
        return observed[case]

    return observation


@pytest.mark.parametrize("case", CASES)
def test_all_is_computed_on_the_device_but_int64_arithmetic_of_shapes(observe, case):
    observed = observe(case)
    types = {value.name: value.type.tensor_type.elem_type for value in observed.graph.graph.value_info}
    nodes = {node.name: node for node in observed.graph.graph.node}
    other = [
        name
        for name, _ in observed.said["on_cpu"]
        if name not in nodes or {types.get(output) for output in nodes[name].output} != {onnx.TensorProto.INT64}
    ]
    assert observed.said["provider"] == "CUDAExecutionProvider"
    assert observed.said["name"] == f"onnxruntime-cuda-{observed.precision}"
    assert len(observed.said["on_cuda"]) > 5 * len(observed.said["on_cpu"])
    assert other == []


@pytest.mark.parametrize("case", REDUCED)
def test_attention_is_flash_without_a_mask_and_never_unfused_also_at_odd_lengths(observe, case):
    observed = observe(case)
    expected = "flash" if observed.is_causal and "attention_mask" not in observed.inputs else "memory-efficient"
    kinds = Counter()
    for section in observed.sections.values():
        kinds += section.attention
    assert kinds.keys() == (set() if observed.model == "deberta-v2" else {expected})  # its attention is no operator


@pytest.mark.parametrize("case", CASES)
def test_a_call_takes_ids_and_indices_to_the_device_and_brings_scores_back_and_no_prefix_crosses(observe, case):
    observed = observe(case)
    num_checked = 0
    for title, (before, longest, is_prefix) in CALLS.items():
        if title not in observed.sections:
            assert not observed.is_causal
            continue
        B = 1 if is_prefix else ROWS
        padded = -(-longest // 8) * 8
        T = padded - before
        rows = {"input_ids": T, "token_type_ids": T, "position_ids": T, "attention_mask": padded}
        numbers = sum(B * size for name, size in rows.items() if name in observed.inputs)
        numbers += (2 * B + is_prefix * longest) if observed.is_causal else 0
        # Beside them, scalars of the arithmetic of shapes.
        moved = observed.sections[title].num_bytes
        assert 8 * numbers <= moved["H2D"] <= 8 * numbers + 64, title
        assert moved["D2H"] == (0 if is_prefix else ROWS * 4), title
        num_checked += 1
    assert num_checked == (7 if observed.is_causal else 3)


@pytest.mark.parametrize("case", CASES)
def test_weights_are_on_the_device_once_and_calls_of_the_same_shape_take_no_more_memory(observe, case):
    found = observe(case).sections
    weights = observe(case).weight_bytes
    if (
        observe(case).model != "deberta-v2"
    ):  # its products of weights and positions are computed once, when it is loaded
        assert 0.98 * weights <= found["load"].memory_end <= weights + 2 * MIB
    assert found["again"].memory_peak == found["shorter"].memory_peak == found["call"].memory_end
    for title, section in found.items():
        assert (section.out_of_memory, section.bad_launches) == (0, []), title


@pytest.mark.parametrize("case", [case for case in REDUCED if case.startswith("llama")])
def test_weights_and_one_call_take_at_most_a_seventh_more_than_their_sum(observe, case):
    observed = observe(case)
    # The most that lives at once, in a layer's MLP: the residual, and the gate in three forms beside the upper part.
    one_call = ROWS * (TOKENS + 1) * (HIDDEN + 4 * INTERMEDIATE) * ITEMSIZES[observed.precision]
    assert one_call > observed.weight_bytes / 8
    assert observed.sections["call"].memory_peak <= 1.15 * (observed.weight_bytes + one_call)


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith("fp32")])
def test_products_of_float32_are_not_computed_in_tf32(observe, case):
    products = [product for section in observe(case).sections.values() for product in section.gemms]
    assert products
    assert not [product for product in products if "tf32" in product]


@pytest.mark.parametrize("case", CASES)
def test_the_gate_runs_through_and_limits_are_those_of_a_device(observe, case):
    said = observe(case).said
    # The stub computes nothing: which scores come out means nothing.
    assert said["gate"]["num_texts"] >= 10
    assert said["gate"]["engine_failures"] == 0
    assert said["batch_tokens"] == 16_384
    left = DEVICE_BYTES - observe(case).sections["load"].memory_end
    assert said["prefix_cache_bytes"] == pytest.approx(left / 8, abs=MIB)


def test_a_device_by_number_has_all_of_the_memory(stub, bundles, tmp_path):
    said, found = stub.calls(bundles("mistral-fp16"), tmp_path / "log", "cuda:1", FAKECUDA_DEVICES="2")
    assert said["provider"] == "CUDAExecutionProvider"
    assert set().union(*(section.devices for section in found.values())) == {1}


@pytest.mark.parametrize(
    ("device", "variables", "reason"),
    [
        ("cuda:1", {}, "--device cuda:1 cannot be used (The provided device id doesn't match"),
        ("cuda", {"LD_LIBRARY_PATH": ""}, "--device cuda:0 cannot be used (Failed to load libcublas"),
    ],
)
def test_a_device_that_cannot_be_used_ends_the_start_in_one_line_with_the_remedy(
    stub, tiny_bundle, device, variables, reason
):
    done = stub.run("plaudit-serve", tiny_bundle(), "--device", device, "--port", "0", **variables)
    assert done.returncode == 1
    assert done.stderr.startswith(f"plaudit-serve: error: {reason}")
    assert done.stderr.endswith("or give --device cpu\n")
    assert done.stderr.count("\n") == 1


def test_a_model_that_does_not_fit_ends_the_start_in_one_line_with_the_remedy(stub, bundles):
    serve = [bundles("mistral-fp16"), "--device", "cuda", "--port", "0"]
    done = stub.run("plaudit-serve", *serve, FAKECUDA_MEM="2M")
    assert done.returncode == 1
    assert re.search(
        r"model\.onnx does not fit into the \d+ bytes that are free on this device; give another device", done.stderr
    )
    assert done.stderr.count("\n") == 1


SPLIT = """
import sys
import numpy as np
from plaudit_service.engine.model import Failure
from plaudit_service.serving.scorer import Scorer
from plaudit_service.text.tokenization import TokenizedText
model = Scorer(sys.argv[1], device="cuda").model
texts = [TokenizedText(np.full(512, 9), None, 512, truncated=False) for _ in range(32)]
outcomes = model.compute(texts)
failed = [outcome for outcome in outcomes if isinstance(outcome, Failure) and "engine failed" in outcome.detail]
print(len(outcomes), len(failed), model.num_engine_failures > 0, model.max_batch_tokens < 32 * 512)
"""


def test_a_batch_that_does_not_fit_into_the_devices_memory_is_split_until_it_does(stub, bundles):
    done = stub.run("python", "-c", SPLIT, bundles("mistral-fp16"), FAKECUDA_MEM="24M")
    assert done.stdout == "32 0 True True\n", done.stderr


def test_a_service_on_a_device_checks_its_golden_texts_and_names_the_device(stub, bundles):
    command = [stub.path / "bin" / "plaudit-serve", bundles("bert-fp16"), "--device", "cuda", "--port", "0"]
    with subprocess.Popen(command, env=stub.environment(), stderr=subprocess.PIPE, text=True) as process:
        events = {}
        for line in process.stderr:
            event = json.loads(line)
            events[event["event"]] = event
            if event["event"] in {"ready", "not_ready"}:
                process.terminate()
    assert process.returncode == 0
    assert events["parity"]["num_golden_texts"] >= 10
