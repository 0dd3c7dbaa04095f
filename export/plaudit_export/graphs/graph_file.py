"""Writes a graph to disk without a second copy of its weights in memory. Knows nothing of how the graph was made."""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

# A protobuf file ends at 2 GiB; the rest of the graph has to fit beside the weights.
MAX_INLINE_BYTES = 2_000_000_000

# Numbers of fields of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_GRAPH_OF_MODEL = onnx.ModelProto.GRAPH_FIELD_NUMBER
_WEIGHT_OF_GRAPH = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_NUMBERS_OF_WEIGHT = onnx.TensorProto.RAW_DATA_FIELD_NUMBER


def save_graph(model: ir.Model, path: Path, *, max_inline_bytes: int = MAX_INLINE_BYTES) -> None:
    """Write a graph, and `<path>.data` with its weights where they would not fit into one file.

    Raises:
        OSError, ValueError: a graph that was loaded points to weights in a file that is not there, or is too short.
    """
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    if sum(weight.nbytes for weight in weights) > max_inline_bytes:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        _save_inline(model, path)


def put_weights_beside(graph: Path, path: Path) -> None:
    """Write a graph that holds its weights again, with the weights in a file of their own.

    ONNX Runtime keeps a file that it has read until the session is there, and maps a file of weights instead.
    """
    save_graph(ir.load(graph), path, max_inline_bytes=0)


def hold_in_bfloat16(graph: ir.Graph) -> None:
    """Hold the float32 weights in bfloat16 that are the same numbers there, each with a Cast to float32 behind it.

    Those of most checkpoints are. ONNX Runtime casts once, when it loads the graph. Tables that rows are only taken
    from, such as embeddings, stay as they are: of these it reads the rows alone that a call needs.
    """
    first = graph[0]
    for name, value in list(graph.initializers.items()):
        weight = value.const_value
        if weight is None or weight.dtype != ir.DataType.FLOAT or len(weight.shape) < 2:
            continue
        if all(node.op_type == "Gather" and index == 0 for node, index in value.uses()) or not _is_bfloat16(weight):
            continue
        held = ir.Value(
            name=f"{name}.bfloat16",
            shape=_shape(weight),
            type=ir.TensorType(ir.DataType.BFLOAT16),
            const_value=_in_bfloat16(weight),
        )
        cast = ir.node("Cast", [held], {"to": ir.DataType.FLOAT})
        graph.insert_before(first, cast)
        value.replace_all_uses_with(cast.outputs[0])
        value.const_value = None  # the tracer keeps it
        graph.initializers.pop(name)
        graph.register_initializer(held)


def without_numbers(model: ir.Model) -> onnx.ModelProto:
    """The graph as a message in which weights of two axes and more are inputs: their types and shapes alone."""
    proto = _without_weights(model)
    for name, value in model.graph.initializers.items():
        weight = value.const_value
        if weight is None:
            continue
        weight.name = name
        if len(weight.shape) < 2:  # shapes and axes are among these
            proto.graph.initializer.append(ir.to_proto(weight))
        else:
            shape = _shape(weight).numpy()
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, weight.dtype, shape))
    return proto


def _is_bfloat16(weight: ir.TensorProtocol) -> bool:
    """Whether the lower half of every number is zero."""
    halves = np.ascontiguousarray(weight.numpy()).view("<u2")
    return not halves[..., ::2].any()


def _in_bfloat16(weight: ir.TensorProtocol) -> ir.LazyTensor:
    """The weight in bfloat16, which is made when it is written."""
    dtype = ir.DataType.BFLOAT16
    return ir.LazyTensor(lambda: ir.tensor(weight.numpy().astype(dtype.numpy())), dtype, _shape(weight))


def _shape(weight: ir.TensorProtocol) -> ir.Shape:
    return ir.Shape(weight.numpy().shape)


def _save_inline(model: ir.Model, path: Path) -> None:
    """Write the bytes that `ir.save` writes, weight by weight: that holds all weights twice more meanwhile.

    Those bytes are the fields of each message in the order of their numbers. Weights in a file of their own are
    copied into this one.
    """
    proto = _without_weights(model)
    values = [value for value in model.graph.initializers.values() if value.const_value is not None]
    first, last = _around(proto.graph, _WEIGHT_OF_GRAPH)
    size_bytes = len(first) + len(last)
    for value in values:
        before, numbers = _weight(value)
        weight_bytes = len(before) + (0 if numbers is None else numbers.nbytes)
        size_bytes += len(_key(_WEIGHT_OF_GRAPH, weight_bytes)) + weight_bytes
    with path.open("wb") as file:
        model_first, model_last = _around(proto, _GRAPH_OF_MODEL)
        file.write(model_first + _key(_GRAPH_OF_MODEL, size_bytes))
        begin = file.tell()
        file.write(first)
        for value in values:
            _write_weight(file, value)
        file.write(last)
        assert file.tell() - begin == size_bytes
        file.write(model_last)


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    values = [value for value in model.graph.initializers.values() if value.const_value is not None]
    weights = [value.const_value for value in values]
    try:
        for value in values:
            value.const_value = ir.Tensor(np.zeros(0, np.float32))
        ir.external_data.load_to_model(model)  # those of graphs inside of nodes
        proto = ir.to_proto(model)
    finally:
        for value, weight in zip(values, weights, strict=True):
            value.const_value = weight
    proto.graph.ClearField("initializer")
    return proto


def _weight(value: ir.Value) -> tuple[bytes, ir.Tensor[Any] | ir.ExternalTensor | None]:
    """A weight's message, or what comes before its numbers, and these."""
    weight = value.const_value
    assert weight is not None
    weight.name = value.name
    if not isinstance(weight, ir.Tensor | ir.ExternalTensor):
        return ir.to_proto(weight).SerializeToString(), None
    before = onnx.TensorProto(name=value.name, data_type=weight.dtype, dims=weight.shape.numpy())
    return before.SerializeToString() + _key(_NUMBERS_OF_WEIGHT, weight.nbytes), weight


def _write_weight(file: BinaryIO, value: ir.Value) -> None:
    before, numbers = _weight(value)
    num_bytes = 0 if numbers is None else numbers.nbytes
    file.write(_key(_WEIGHT_OF_GRAPH, len(before) + num_bytes) + before)
    begin = file.tell()
    if numbers is not None:
        numbers.tofile(file)
    if (written := file.tell() - begin) != num_bytes:
        raise ValueError(f"the weight {value.name} has {written} bytes, its type and shape need {num_bytes}")


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """The bytes of a message's fields before a field, and of those after it."""
    before, after = type(message)(), type(message)()
    for half, other in ((before, lambda at: at >= number), (after, lambda at: at <= number)):
        half.CopyFrom(message)
        for field, _ in half.ListFields():
            if other(field.number):
                half.ClearField(field.name)
    return before.SerializeToString(), after.SerializeToString()


def _key(number: int, size_bytes: int) -> bytes:
    """What comes before a field of so many bytes: https://protobuf.dev/programming-guides/encoding."""
    return _varint(number << 3 | 2) + _varint(size_bytes)


def _varint(number: int) -> bytes:
    septets = bytearray()
    while number > 0x7F:
        septets.append(number & 0x7F | 0x80)
        number >>= 7
    septets.append(number)
    return bytes(septets)
