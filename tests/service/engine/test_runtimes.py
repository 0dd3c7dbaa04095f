"""The runtimes under the engines: what each promises, and what is refused."""

import resource
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from plaudit_service import Scorer
from plaudit_service.engine.onnx_runtime import OnnxRuntime, open_session
from plaudit_service.engine.onnx_runtime_cuda import (
    OnnxRuntimeCuda,
    prefix_cache_bytes,
    refuse_attention_on_cpu,
    refuse_fallback,
)
from plaudit_service.engine.openvino_runtime import open_openvino
from plaudit_service.engine.runtimes import open_runtimes
from plaudit_service.errors import BundleError, InvalidRequest, ServiceError, SettingsError
from plaudit_service.serving.parity import check

TEXTS = [f"the egg boils {'no ' * (number * 7 % 30)}{number}" for number in range(24)]


@pytest.mark.parametrize("name", ["causal_bundle", "encoder_bundle"])
def test_openvino_gives_the_scores_of_onnx_runtime_within_what_it_states(request, name):
    bundle = request.getfixturevalue(name)
    scorer = Scorer(bundle, runtime="openvino")
    expected = Scorer(bundle).score(TEXTS).floats
    limit = max(scorer.model.engine.tolerance * np.std(expected), 1e-5)
    assert np.abs(np.array(scorer.score(TEXTS).floats) - expected).max() <= limit
    report = check(scorer)
    assert report.ok
    assert not report.batch_invariant


@pytest.mark.parametrize("name", ["causal_bundle", "encoder_bundle"])
def test_several_calls_at_once_give_the_same_bits_on_onnx_runtime(request, name):
    bundle = request.getfixturevalue(name)
    prompt = "Wie geht es dir? the egg boils " * 6
    items = [*TEXTS, *({"prompt": f"{number} {prompt}", "completions": [" no", " yes"]} for number in range(6))]
    expected = Scorer(bundle, num_threads=2).score(items).floats
    for num_threads, engine_calls in ((2, 2), (6, 3)):
        scorer = Scorer(bundle, num_threads=num_threads, engine_calls=engine_calls, max_batch_tokens=256)
        assert scorer.score(items).floats == expected
        report = check(scorer)
        assert report.ok
        assert report.batch_invariant


def test_several_calls_at_once_give_openvinos_scores_within_what_it_states(causal_bundle):
    expected = Scorer(causal_bundle).score(TEXTS).floats
    scorer = Scorer(causal_bundle, runtime="openvino", num_threads=2, engine_calls=2, max_batch_tokens=256)
    limit = max(scorer.model.engine.tolerance * np.std(expected), 1e-5)
    assert np.abs(np.array(scorer.score(TEXTS).floats) - expected).max() <= limit


def test_what_a_long_text_takes_is_given_back(tmp_path):
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["row"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["row"], ["column"]),
        helper.make_node("Mul", ["row", "column"], ["product"]),  # (T, T)
        helper.make_node("ReduceSum", ["product"], ["scores"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "T"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1])
    graph = helper.make_graph(nodes, "square", [ids], [scores])
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    runtime = OnnxRuntime(tmp_path / "model.onnx", 1)
    runtime.run(["scores"], {"input_ids": np.ones((1, 1024), dtype=np.int64)})
    before = resident_bytes()
    (total,) = runtime.run(["scores"], {"input_ids": np.ones((1, 6000), dtype=np.int64)})  # takes 144 MB
    assert total.item() == 6000**2
    assert resident_bytes() - before < 20e6


def resident_bytes():
    """Memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_calls_at_once_need_a_thread_each_and_a_cpu(causal_bundle):
    with pytest.raises(SettingsError, match="--engine-calls 3: more than the engine's 2 threads; lower it"):
        Scorer(causal_bundle, num_threads=2, engine_calls=3)
    with pytest.raises(SettingsError, match="--engine-calls 2: one call fills a CUDA device; leave it out"):
        Scorer(causal_bundle, device="cuda", engine_calls=2)


def test_openvino_refuses_values_along_a_text_and_says_what_gives_them(causal_bundle):
    with pytest.raises(InvalidRequest, match="computes the pooled token alone; serve with --runtime onnxruntime"):
        Scorer(causal_bundle, runtime="openvino").score(["no"], along="tokens")


SEVERAL = """
import gc, signal, sys
from plaudit_service import Scorer

first = Scorer(sys.argv[1], runtime="openvino")
second = Scorer(sys.argv[1], runtime="openvino")
del first
gc.collect()
del second
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_process_that_has_let_go_of_openvino_models_survives_a_signal(causal_bundle):
    done = subprocess.run([sys.executable, "-c", SEVERAL, causal_bundle], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n")


def test_openvino_continues_a_shared_prefix(causal_bundle):
    group = {"prompt": "Wie geht es dir? the egg boils " * 6, "completions": [f" no {number}" for number in range(8)]}
    scorer = Scorer(causal_bundle, runtime="openvino")
    scores = scorer.score([group]).floats
    assert scorer.model.num_computed_prefix_tokens() > 64
    assert np.abs(np.array(scores) - Scorer(causal_bundle).score([group]).floats).max() < 0.25


def test_a_service_on_openvino_names_its_engine_and_publishes_its_differences(serve, encoder_bundle):
    with serve(encoder_bundle, flags=["--runtime", "openvino"]) as service:
        answer = httpx2.post(f"{service.url}/score", json={"items": [{"text": TEXTS[0]}]}).json()
        assert answer["engine"].startswith("openvino-cpu-")
        assert answer["results"][0]["status"] == "ok"
        (model,) = httpx2.get(f"{service.url}/info").json()["models"]
        assert model["runtime"] == "openvino"
        assert model["parity"]["batch_invariant"] is False
        assert model["parity"]["max_abs_diff"] >= 0


def test_openvino_refuses_a_graph_that_is_none_in_one_line(tmp_path):
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"no graph")
    with pytest.raises(ServiceError, match=r"model\.onnx cannot be loaded: ") as caught:
        open_openvino(graph, 1, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="there is a CUDA provider")
def test_a_device_is_refused_with_the_remedy_where_there_is_none(tiny_bundle):
    with pytest.raises(ServiceError, match=r"no CUDAExecutionProvider; install 'plaudit\[service-gpu\]'"):
        OnnxRuntimeCuda(tiny_bundle() / "model.onnx", "fp32", 0)


def test_a_session_that_fell_back_to_the_cpu_is_refused(tiny_bundle):
    session = open_session(tiny_bundle() / "model.onnx")
    with pytest.raises(
        ServiceError, match=r"--device cuda:1 cannot be used \(.* CPUExecutionProvider\); .* --device cpu"
    ):
        refuse_fallback(session, 1)


@pytest.mark.parametrize(("free_bytes", "expected"), [(80 << 30, 10 << 30), (8, 1), (0, 0), (None, 256 << 20)])
def test_prefixes_are_kept_in_an_eighth_of_the_memory_that_a_device_has_left(free_bytes, expected):
    assert prefix_cache_bytes(free_bytes) == expected


def test_a_runtime_with_a_device_that_it_does_not_have_is_refused(tiny_bundle):
    with pytest.raises(SettingsError, match="--runtime openvino cannot compute on cuda:1; leave --device at cpu"):
        Scorer(tiny_bundle(), runtime="openvino", device="cuda:1")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_bfloat16_is_refused_on_the_cpu_with_the_remedy(runtime, tmp_path):
    with pytest.raises(BundleError, match="precision bf16 runs on CUDA devices only; give --device cuda, or export"):
        open_runtimes(tmp_path / "model.onnx", "bf16", runtime=runtime, device="cpu", num_threads=1, num_calls=1)


def test_attention_on_the_cpu_is_refused_beside_a_device(causal_bundle, tmp_path):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")

    def opened(path):
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    with pytest.raises(ServiceError, match="attention nodes would run on the CPU"):
        refuse_attention_on_cpu(opened(causal_bundle / "model.onnx"))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "no_attention", [value], [result])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "model.onnx"
    )
    refuse_attention_on_cpu(opened(tmp_path / "model.onnx"))
