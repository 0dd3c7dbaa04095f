"""What a graph needs before OpenVINO compiles it, and what saves it work. Knows nothing of devices and batches."""

import math
from collections.abc import Sequence
from typing import Any

# Each row of their result is made of the same row of what they are given.
_ELEMENTWISE = {
    *("Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Power", "SquaredDifference"),
    *("Abs", "Clamp", "Erf", "Exp", "Gelu", "Mish", "Negative", "Relu", "Sigmoid", "SoftPlus", "Sqrt", "Swish", "Tanh"),
}
_ALONG_LAST_AXIS = {"MVN", "ReduceMean", "ReduceSum"}


def prepare(model: Any) -> Any:
    """Make a graph that OpenVINO runs, and that computes no more than is asked for, in place."""
    from openvino.passes import ConstantFolding, Manager

    _repeat_heads(model)
    # Values of single tokens, which would need all of the last layer: the engine refuses who asks for them.
    for result in model.get_results():
        if "token_scores" in result.input_value(0).get_names():
            model.remove_result(result)
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    _pool_early(model)
    model.validate_nodes_and_infer_types()
    return model


def _repeat_heads(model: Any) -> None:
    """Give every attention as many heads of keys and values as of queries.

    OpenVINO 2026.4 reads grouped heads, and then refuses to run them: "Incompatible MatMul batch dimension".
    """
    from openvino import opset13 as ops

    for attention in model.get_ordered_ops():
        if attention.get_type_name() != "ScaledDotProductAttention":
            continue
        query, *grouped = (attention.input_value(place) for place in range(3))
        heads = ops.gather(ops.shape_of(query), ops.constant([1]), ops.constant(0))  # (1,)
        for place, value in enumerate(grouped, start=1):
            batch, groups, tokens, size = (
                ops.gather(ops.shape_of(value), ops.constant([axis]), ops.constant(0)) for axis in range(4)
            )
            wide = ops.concat([batch, groups, ops.divide(heads, groups), tokens, size], 0)
            repeated = ops.broadcast(ops.unsqueeze(value, ops.constant([2])), wide)
            flat = ops.reshape(repeated, ops.concat([batch, heads, tokens, size], 0), special_zero=False)
            attention.input(place).replace_source_output(flat.output(0))
    model.validate_nodes_and_infer_types()


def _pool_early(model: Any) -> None:
    """Take the pooled token of each text behind the last attention, not behind the last layer.

    Behind its attention, a layer computes each token by itself; of the last layer, one token of a text is wanted. A
    graph of another shape stays as it is.
    """
    from openvino import opset13 as ops

    nodes = model.get_ordered_ops()
    pooling = next(filter(_is_pooling, nodes), None)
    if pooling is None:
        return
    moved = _row_wise_before(pooling, nodes)
    if not any(node.get_type_name() == "MatMul" for node in moved):
        return
    names = {node.get_friendly_name() for node in moved}
    pooled: dict[str, Any] = {}  # of shape (R, 1, size)
    for node in moved:
        for port in node.inputs():
            value = port.get_source_output()
            name = value.get_node().get_friendly_name()
            if name not in names and _has_tokens(value):
                pooled.setdefault(name, ops.unsqueeze(_pool(pooling, value), ops.constant([1])))
                port.replace_source_output(pooled[name].output(0))
    pooling.output(0).replace(ops.squeeze(pooling.input_value(0), ops.constant([1])).output(0))


def _is_pooling(node: Any) -> bool:
    """Whether it takes some tokens (R, size) of all (B, T, size)."""
    kind = node.get_type_name()
    if kind not in {"Gather", "GatherND"} or not _has_tokens(node.input_value(0)):
        return False
    if node.get_attributes()["batch_dims"] != 0 or node.get_output_partial_shape(0).rank.get_length() != 2:
        return False
    return kind == "GatherND" or _numbers(node.input_value(2)) == [1]


def _pool(pooling: Any, value: Any) -> Any:
    """What a pooling would take of another value of (B, T, size)."""
    from openvino import opset13 as ops

    pool = ops.gather if pooling.get_type_name() == "Gather" else ops.gather_nd
    return pool(value, *pooling.input_values()[1:])


def _row_wise_before(pooling: Any, nodes: Sequence[Any]) -> list[Any]:
    """The nodes that work on each token by itself, and for the pooling alone.

    Args:
        pooling: One of the nodes.
        nodes: All of the graph, in order.
    """
    known = {node.get_friendly_name() for node in nodes}
    names, moved = {pooling.get_friendly_name()}, []
    for node in reversed(nodes):
        users = {port.get_node().get_friendly_name() for out in node.outputs() for port in out.get_target_inputs()}
        users &= known  # what has lost its result lives on until it is collected
        if users and users <= names and _is_row_wise(node):
            names.add(node.get_friendly_name())
            moved.append(node)
    return moved


def _is_row_wise(node: Any) -> bool:
    kind, values = node.get_type_name(), node.input_values()
    if len(node.outputs()) != 1 or not _has_tokens(node.output(0)):
        return False
    if kind == "MatMul":
        return _has_tokens(values[0]) and not node.get_attributes()["transpose_a"] and _rank_of_constant(values[1]) == 2
    if kind in _ALONG_LAST_AXIS:
        return _has_tokens(values[0]) and _numbers(values[1]) in ([-1], [2])
    return kind in _ELEMENTWISE and all(_has_tokens(value) or _rank_of_constant(value) < 2 for value in values)


def _has_tokens(value: Any) -> bool:
    """Whether it is of shape (B, T, size)."""
    shape = value.get_partial_shape()
    return bool(shape.rank.is_static and shape.rank.get_length() == 3 and shape[1].is_dynamic)


def _rank_of_constant(value: Any) -> float:
    """Axes of a constant, without leading ones of one place; inf: it is none."""
    if value.get_node().get_type_name() != "Constant":
        return math.inf
    sizes = list(value.get_shape())
    while sizes and sizes[0] == 1:
        sizes.pop(0)
    return len(sizes)


def _numbers(value: Any) -> list[float] | None:
    """Those of a constant; None: it is none."""
    node = value.get_node()
    return node.get_data().reshape(-1).tolist() if node.get_type_name() == "Constant" else None
