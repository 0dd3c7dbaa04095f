"""A graph is written weight by weight, and no byte shows it."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checkpoints.rules import Options, derive_rules
from plaudit_export.exporter import export_checkpoint
from plaudit_export.graphs import quantization, tracing
from plaudit_export.graphs.graph_file import hold_in_bfloat16, put_weights_beside, save_graph, without_numbers
from plaudit_export.graphs.precision import GraphScorer
from plaudit_export.graphs.tracing import export_graph, lower
from plaudit_export.testing import tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_service.text.tokenization import TokenizedText


def save_both(model, path):
    """Save a graph, and beside it what onnx_ir makes of it."""
    save_graph(model, path)
    ir.save(model, path.with_name("expected.onnx"))


def pair(directory):
    return tuple((directory / name).read_bytes() for name in ("model.onnx", "expected.onnx"))


@pytest.fixture
def inline(causal_bundle):
    return causal_bundle.bundle.path / "model.onnx"


@pytest.mark.parametrize(
    ("build", "precision"),
    [
        (tiny_causal_checkpoint, "float16"),
        (tiny_encoder_checkpoint, "float32"),
        pytest.param(tiny_causal_checkpoint, "float32", marks=pytest.mark.slow),
        pytest.param(tiny_causal_checkpoint, "bfloat16", marks=pytest.mark.slow),
        pytest.param(tiny_encoder_checkpoint, "float16", marks=pytest.mark.slow),
    ],
)
def test_a_traced_graph_has_the_bytes_that_onnx_ir_writes(build, precision, tmp_path, monkeypatch):
    checkpoint = load_checkpoint(str(build(tmp_path / "it")))
    lower(checkpoint.model, getattr(torch, precision))
    monkeypatch.setattr(tracing, "save_graph", save_both)
    export_graph(checkpoint, tmp_path / "model.onnx")
    written, expected = pair(tmp_path)
    assert written == expected


def test_an_int8_graph_has_the_bytes_that_onnx_ir_writes(tmp_path, monkeypatch):
    checkpoint = tiny_encoder_checkpoint(tmp_path / "it")
    pairs = []

    def save(model, path):
        save_both(model, path)
        pairs.append(pair(path.parent))
        path.with_name("expected.onnx").unlink()

    monkeypatch.setattr(quantization, "save_graph", save)
    export_checkpoint(str(checkpoint), tmp_path / "bundle", Options(precision="int8", allow_loss=True))
    assert len(pairs) > 1
    assert all(written == expected for written, expected in pairs)


def test_weights_in_a_file_of_their_own_are_copied_into_the_graph(inline, tmp_path):
    ir.save(ir.load(inline), tmp_path / "beside.onnx", external_data="weights")
    assert (tmp_path / "beside.onnx").stat().st_size < inline.stat().st_size / 2
    save_graph(ir.load(tmp_path / "beside.onnx"), tmp_path / "model.onnx")
    (tmp_path / "weights").unlink()
    expected, written = (
        [value.const_value.tobytes() for value in ir.load(path).graph.initializers.values()]
        for path in (inline, tmp_path / "model.onnx")
    )
    assert written == expected


def test_weights_go_into_a_file_of_their_own(inline, tmp_path):
    put_weights_beside(inline, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < inline.stat().st_size / 2
    before, after = ir.load(inline).graph.initializers, ir.load(tmp_path / "model.onnx").graph.initializers
    assert {name: value.const_value.tobytes() for name, value in after.items()} == {
        name: value.const_value.tobytes() for name, value in before.items()
    }
    assert any(isinstance(value.const_value, ir.ExternalTensor) for value in after.values())


def test_a_graph_without_numbers_is_one_of_the_same_nodes_types_and_shapes(inline):
    model = ir.load(inline)
    proto = without_numbers(model)
    assert proto.ByteSize() < inline.stat().st_size / 2
    assert onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    named = {each.name: (each.type.tensor_type.elem_type, shape(each)) for each in proto.graph.input}
    named |= {each.name: (each.data_type, tuple(each.dims)) for each in proto.graph.initializer}
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert {name: named[name] for name in weights} == {
        name: (each.dtype, each.numpy().shape) for name, each in weights.items()
    }
    assert proto.graph.node == onnx.load(inline).graph.node


def shape(value):
    return tuple(size.dim_value for size in value.type.tensor_type.shape.dim)


def test_weights_that_are_the_same_numbers_in_bfloat16_are_held_there_and_no_others():
    exact, last_bit, negative = (np.full((2, 3), 1.5, np.float32) for _ in range(3))
    last_bit.view(np.uint32)[1, 2] |= 1
    negative[0, 0] = -(2.0**-126)
    weights = {"exact": exact, "last_bit": last_bit, "negative": negative.T, "vector": exact[0], "table": exact.copy()}
    initializers = [ir.Value(name=name, const_value=ir.tensor(each, name=name)) for name, each in weights.items()]
    *summed, table = initializers
    node, rows = ir.node("Sum", summed), ir.node("Gather", [table, ir.val("index")])
    outputs = [*node.outputs, *rows.outputs]
    graph = ir.Graph([rows.inputs[1]], outputs, nodes=[node, rows], initializers=initializers, opset_imports={"": 23})
    hold_in_bfloat16(graph)
    held = {name: value.const_value for name, value in graph.initializers.items()}
    assert sorted(held) == ["exact.bfloat16", "last_bit", "negative.bfloat16", "table", "vector"]
    for name in ("exact", "negative"):
        assert held[f"{name}.bfloat16"].dtype == ir.DataType.BFLOAT16
        np.testing.assert_array_equal(held[f"{name}.bfloat16"].numpy().astype(np.float32), weights[name], strict=True)
    casts = {each.inputs[0].name: each for each in graph if each.op_type == "Cast"}
    assert [each.producer() or each.name for each in node.inputs] == [
        casts["exact.bfloat16"],
        "last_bit",
        casts["negative.bfloat16"],
        "vector",
    ]


def test_a_file_of_weights_that_is_too_short_is_refused(inline, tmp_path):
    ir.save(ir.load(inline), tmp_path / "beside.onnx", external_data="weights")
    (tmp_path / "weights").write_bytes((tmp_path / "weights").read_bytes()[:-1])
    with pytest.raises((OSError, ValueError)):
        save_graph(ir.load(tmp_path / "beside.onnx"), tmp_path / "model.onnx")


def test_every_kind_of_weight_and_what_stands_behind_the_weights_is_written(tmp_path):
    """Half bytes, text, no numbers at all, numbers in a field of their type, and metadata behind everything."""
    scalar = ir.to_proto(ir.tensor(0.5, name="scalar"))
    scalar.ClearField("raw_data")
    scalar.float_data.append(0.5)
    given = [
        ir.tensor(np.arange(6).reshape(2, 3).astype(ml_dtypes.int4), name="half_bytes"),
        ir.StringTensor(np.array([b"some", b"text"]), name="text"),
        ir.tensor(np.zeros((3, 0), np.float32), name="nothing"),
        ir.tensor(np.arange(300, dtype=np.int64), name="many"),
        ir.serde.deserialize_tensor(scalar),
    ]
    x = ir.Value(name="x", shape=ir.Shape(["N"]), type=ir.TensorType(ir.DataType.FLOAT))
    initializers = [ir.Value(name=each.name, const_value=each, shape=each.shape) for each in given]
    node = ir.node("Add", [x, initializers[-1]])
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=initializers, opset_imports={"": 23}, name="it", doc_string="text"
    )
    graph.metadata_props["key"] = "value"
    model = ir.Model(graph, ir_version=10, producer_name="someone")
    model.metadata_props["key"] = "value"
    save_both(model, tmp_path / "model.onnx")
    written, expected = pair(tmp_path)
    assert written == expected
    assert [value.const_value for value in graph.initializers.values()] == given


@pytest.mark.parametrize(
    ("build", "architecture"),
    [
        (tiny_causal_checkpoint, "llama"),
        *(pytest.param(tiny_causal_checkpoint, name, marks=pytest.mark.slow) for name in ("gemma2", "mistral")),
        *(pytest.param(tiny_encoder_checkpoint, name, marks=pytest.mark.slow) for name in ("bert", "deberta-v2")),
    ],
)
def test_a_graph_whose_weights_are_held_in_bfloat16_gives_the_bits_of_the_one_in_float32(build, architecture, tmp_path):
    checkpoint = load_checkpoint(str(build(tmp_path / "it", architecture=architecture)))
    for parameter in checkpoint.model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    bits = []
    for folder, to_run_only in [("float32", False), ("bfloat16", True)]:
        (tmp_path / folder).mkdir()
        export_graph(checkpoint, tmp_path / folder / "model.onnx", to_run_only=to_run_only)
        rules = derive_rules(checkpoint, Options())
        scoring = rules.scoring(dict.fromkeys(("model.onnx", "tokenizer.json"), "0" * 64))
        texts = [TokenizedText(np.arange(3, 3 + size), None, size, truncated=False) for size in (2, 3, 9, 40)]
        bits.append(GraphScorer(tmp_path / folder, scoring).heads(texts, "texts").tolist())
    assert bits[0] == bits[1]
    held = [value.dtype for value in ir.load(tmp_path / "bfloat16" / "model.onnx").graph.initializers.values()]
    assert held.count(ir.DataType.BFLOAT16) > 9
