"""Static int8: products of activations and weights become integer products, with ranges from calibration texts.

QDQ form: an activation has one scale and zero point (uint8), a weight one scale for each output (int8). Never dynamic:
a range taken over the batch would make a score depend on its batch mates. What is added up stays in float32: biases,
norms, attention, and the head.

A few channels of a transformer's activations are tens of times larger than the rest, and cutting them off ruins the
scores (docs/precision.md has figures). Their excess is moved into the weights instead: x W = (x / s) (s W), after
SmoothQuant (Xiao et al. 2023, arXiv 2211.10438, section 4). Deviation: s divides only channels over a threshold, which
is chosen for each product by its error, and the division stays in the graph, since x is often also a residual.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from plaudit_export.graphs.graph_file import save_graph
from plaudit_service.engine.engines import Feeds
from plaudit_service.engine.onnx_runtime import open_session

Floats = npt.NDArray[np.float32]

# Thresholds that are tried for the channels of an activation, by its largest value; 1: nothing is divided.
_THRESHOLDS = (1.0, 0.5, 0.25, 0.125, 0.0625)
# Rows of an activation that the thresholds are tried on.
_NUM_SAMPLED_ROWS = 512
_EPSILON = np.float32(1e-12)


@dataclass
class Activation:
    """What calibration saw of the input of one or several products.

    Attributes:
        low, high: shape (C,), smallest and largest value of each channel; 0 lies between them.
        rows: shape (R, C), sampled rows, and the one with the largest value.
    """

    low: Floats
    high: Floats
    rows: Floats

    @property
    def peak(self) -> Floats:
        """Largest absolute value of each channel."""
        return np.maximum(-self.low, self.high)


def calibrate(graph: Path, feeds: Iterable[Feeds], scratch: Path) -> dict[str, Activation]:
    """Run the float32 graph on texts, one at a time, and look at the input of every product.

    Args:
        graph: the float32 graph.
        feeds: the inputs of one text each.
        scratch: a directory for a copy of the graph.

    Returns:
        By the name of the activation; without those of the head, which see one row of a text.
    """
    model = ir.load(graph)
    names = list(_products(model))
    for products in _products(model).values():
        activation = products[0].inputs[0]
        assert activation is not None
        if activation not in model.graph.outputs:
            activation.type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs.append(activation)
    save_graph(model, scratch / graph.name)
    session = open_session(scratch / graph.name)
    seen: dict[str, Activation] = {}
    rng = np.random.default_rng(0)
    heads: set[str] = set()
    for text in feeds:
        for name, value in zip(names, session.run(names, text), strict=True):
            rows = value.reshape(-1, value.shape[-1])
            if len(rows) < len(text["input_ids"][0]):
                heads.add(name)
            elif name not in heads:
                seen[name] = _merge(seen.get(name), rows, rng)
    return seen


def quantize(graph: Path, activations: dict[str, Activation], kept: Sequence[str], path: Path) -> None:
    """Write the int8 graph.

    Args:
        graph: the float32 graph.
        activations: what calibration saw; a product of another activation stays as it is.
        kept: names of activations whose products stay in float32 too.
        path: where to write.
    """
    model = ir.load(graph)
    for name, products in _products(model).items():
        if name in activations and name not in kept:
            _quantize_products(model.graph, name, activations[name], products)
    RemoveUnusedNodesPass()(model)
    save_graph(model, path)


def _products(model: ir.Model) -> dict[str, list[ir.Node]]:
    """Nodes that multiply an activation by a constant matrix, by the name of the activation."""
    products: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type not in {"MatMul", "Gemm"} or node.domain:
            continue
        activation, weight = node.inputs[:2]
        if activation is None or weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
            continue
        plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if plain and not node.attributes.get_int("transA", 0) and activation.const_value is None:
            products.setdefault(str(activation.name), []).append(node)
    return products


def _merge(seen: Activation | None, rows: Floats, rng: np.random.Generator) -> Activation:
    low, high = np.minimum(rows.min(axis=0), 0), np.maximum(rows.max(axis=0), 0)
    extreme = rows[np.abs(rows).max(axis=1).argmax()][None]
    sampled = rows[rng.permutation(len(rows))[: _NUM_SAMPLED_ROWS // 8]]
    if seen is None:
        return Activation(low, high, np.concatenate([extreme, sampled]))
    largest = extreme if np.abs(extreme).max() > np.abs(seen.rows[0]).max() else seen.rows[:1]
    pool = np.concatenate([seen.rows[1:], sampled])
    kept = pool[rng.permutation(len(pool))[:_NUM_SAMPLED_ROWS]]
    return Activation(np.minimum(seen.low, low), np.maximum(seen.high, high), np.concatenate([largest, kept]))


def _quantize_products(graph: ir.Graph, name: str, activation: Activation, products: list[ir.Node]) -> None:
    weights = [_weight(product) for product in products]
    divisors = _divisors(activation, weights)
    scale, zero = _activation_scale(activation, divisors)
    first, value = products[0], products[0].inputs[0]
    assert value is not None

    def constant(suffix: str, content: npt.NDArray[np.generic]) -> ir.Value:
        tensor = ir.tensor(content, name=f"{name}.{suffix}")
        constant = ir.Value(name=tensor.name, const_value=tensor)
        graph.register_initializer(constant)
        return constant

    def add(op: str, inputs: list[ir.Value], suffix: str, before: ir.Node, **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        node.outputs[0].name = f"{name}.{suffix}"
        graph.insert_before(before, node)
        return node.outputs[0]

    if (divisors > 1).any():
        value = add("Mul", [value, constant("multiplier", 1 / divisors)], "divided", first)
    scales = [constant("scale", scale), constant("zero", zero)]
    integers = add("QuantizeLinear", [value, *scales], "quantized", first)
    for at, (product, weight) in enumerate(zip(products, weights, strict=True)):
        integer_weight, weight_scale = _integer_weight(weight * divisors[:, None])
        stored = [
            constant(f"weight{at}.integers", integer_weight),
            constant(f"weight{at}.scale", weight_scale),
            constant(f"weight{at}.zero", np.zeros(len(weight_scale), dtype=np.int8)),
        ]
        left = add("DequantizeLinear", [integers, *scales], f"dequantized{at}", product)
        right = add("DequantizeLinear", stored, f"weight{at}", product, axis=1)
        result = add("MatMul", [left, right], f"product{at}", product)
        if len(product.inputs) > 2 and product.inputs[2] is not None:
            result = add("Add", [result, product.inputs[2]], f"sum{at}", product)
        product.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove(product, safe=True)


def _weight(product: ir.Node) -> Floats:
    """Shape (C, outputs)."""
    value = product.inputs[1]
    assert value is not None
    assert value.const_value is not None
    weight: Floats = value.const_value.numpy()
    return weight.T if product.attributes.get_int("transB", 0) else weight


def _divisors(activation: Activation, weights: list[Floats]) -> Floats:
    """What each channel is divided by: of a few thresholds the one whose products are nearest to float32's."""
    weight = np.concatenate(weights, axis=1)
    exact = activation.rows @ weight
    errors = [
        float(np.square(_integer_product(activation, weight, divisors) - exact).mean())
        for divisors in _candidates(activation)
    ]
    return list(_candidates(activation))[int(np.argmin(errors))]


def _candidates(activation: Activation) -> Iterator[Floats]:
    largest = max(float(activation.peak.max()), float(_EPSILON))
    for threshold in _THRESHOLDS:
        yield np.maximum(1, activation.peak / np.float32(threshold * largest)).astype(np.float32)


def _integer_product(activation: Activation, weight: Floats, divisors: Floats) -> Floats:
    """What the int8 graph will make of the sampled rows, shape (R, outputs)."""
    scale, zero = _activation_scale(activation, divisors)
    integers = np.clip(np.rint(activation.rows / divisors / scale) + zero, 0, 255) - zero
    integer_weight, weight_scale = _integer_weight(weight * divisors[:, None])
    product: Floats = (integers * scale).astype(np.float32) @ (integer_weight * weight_scale)
    return product


def _activation_scale(
    activation: Activation, divisors: Floats
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Scale and zero point, so that the whole range fits: values that are cut off cost most."""
    low, high = float((activation.low / divisors).min()), float((activation.high / divisors).max())
    scale = np.array(max((high - low) / 255, _EPSILON), dtype=np.float32)
    return scale, np.array(np.clip(np.rint(-low / scale), 0, 255), dtype=np.uint8)


def _integer_weight(weight: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Integers of shape (C, outputs) and a scale for each output."""
    scale: Floats = np.maximum(np.abs(weight).max(axis=0) / 127, _EPSILON).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale
