"""Graphs as OpenVINO gets them."""

import importlib
import sys

import numpy as np
import pytest

from plaudit_service.engine.openvino_graph import prepare


@pytest.fixture
def openvino(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)  # it would report the import
    return importlib.import_module("openvino")


@pytest.fixture
def ops(openvino):
    return importlib.import_module("openvino.opset13")


@pytest.mark.parametrize("name", ["causal_bundle", "encoder_bundle"])
def test_what_follows_the_last_attention_is_computed_for_the_pooled_tokens_alone(request, openvino, name):
    graph = str(request.getfixturevalue(name) / "model.onnx")

    def num_products_of_one_token(model):
        """Products of a value (R, 1, size) with weights."""
        products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
        weighed = [node for node in products if node.input_value(1).get_node().get_type_name() == "Constant"]
        shapes = [node.input_value(0).get_partial_shape() for node in weighed]
        return sum(len(shape) == 3 and shape[1] == 1 for shape in shapes)

    plain, prepared = (openvino.Core().read_model(graph) for _ in range(2))
    assert num_products_of_one_token(plain) == 0
    assert num_products_of_one_token(prepare(prepared)) >= 3  # of the attention's output, and of the layer behind it


def test_a_graph_that_pools_in_another_way_is_left_as_it_is(openvino, ops):
    hidden = ops.parameter([-1, -1, 4], name="hidden")
    product = ops.matmul(hidden, ops.constant(np.eye(4, dtype=np.float32)), False, False)
    model = openvino.Model([ops.reduce_mean(product, ops.constant([1]))], [hidden])
    before = [node.get_type_name() for node in model.get_ordered_ops()]
    assert [node.get_type_name() for node in prepare(model).get_ordered_ops()] == before


def test_what_another_node_needs_of_all_tokens_is_computed_for_all_of_them(openvino, ops):
    hidden = ops.parameter([-1, -1, 4], name="hidden")
    product = ops.matmul(hidden, ops.constant(np.diag(np.arange(4, dtype=np.float32))), False, False)
    moved = ops.matmul(ops.relu(product), ops.constant(np.eye(4, dtype=np.float32)), False, False)
    pooled = ops.gather(moved, ops.constant(0), ops.constant(1))
    model = openvino.Model([pooled, ops.reduce_sum(product, ops.constant([1]))], [hidden])
    compiled = openvino.Core().compile_model(prepare(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 8
    first, total = compiled([values]).values()
    assert np.array_equal(first, np.maximum(values[:, 0] * np.arange(4), 0))
    assert np.array_equal(total, (values * np.arange(4)).sum(axis=1))
