"""What runs an ONNX graph: ONNX Runtime on the CPU or a CUDA device, OpenVINO on the CPU.

A runtime takes and gives tensors by name. Knows nothing of sequences, batches or scores.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from plaudit_service.engine.cores import num_cores
from plaudit_service.errors import BundleError, ServiceError

Array = npt.NDArray[Any]

_DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}
# In bfloat16, whose fraction has 7 bits, scores moved by up to a tenth of their standard deviation; a wrong token or
# padding moves them by about one.
_BF16_TOLERANCE = 0.25


@dataclass(frozen=True)
class Input:
    """An input of a graph: its sizes (None where they vary) and its dtype."""

    shape: tuple[int | None, ...]
    dtype: Any


class Runtime(Protocol):
    """A loaded graph.

    Attributes:
        name: Runtime and device, and the precision where it is not the graph's own: `onnxruntime-cpu`.
        inputs: By name.
        outputs: Names.
        tolerance: How far it may move a score, in standard deviations of the golden texts' scores; 0: not at all.
        promises_bits: Whether a score's bits are to be the same in every batch.
    """

    name: str
    inputs: dict[str, Input]
    outputs: list[str]
    tolerance: float
    promises_bits: bool

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Array]:
        """Compute some outputs; raises whatever the runtime raises."""
        ...

    def run_kept(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """The same, where the results stay on the device, to be fed to later calls."""
        ...

    def cut(self, kept: Any, num_tokens: int) -> Any:
        """The first tokens (axis 2) of a kept result."""
        ...


class OnnxRuntime:
    """ONNX Runtime on the CPU: in float32 the bits of a score do not depend on the batch.

    Args:
        graph: The ONNX file.
        num_threads: Threads of one call; 0: one per core that this process may use.

    Raises:
        BundleError: the graph cannot be loaded.
    """

    name = "onnxruntime-cpu"
    tolerance = 0.0
    promises_bits = True

    def __init__(self, graph: Path, num_threads: int) -> None:
        self._session = open_session(graph, num_threads)
        self.inputs, self.outputs = _describe(self._session)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Array]:
        """Compute some outputs."""
        result: list[Array] = self._session.run(list(outputs), dict(feeds))
        return result

    run_kept = run

    def cut(self, kept: Array, num_tokens: int) -> Array:
        """The first tokens of a kept result."""
        return kept[:, :, :num_tokens]


class OnnxRuntimeCuda:
    """ONNX Runtime on a CUDA device, TF32 off, keys and values of prefixes kept on the device. Not run yet.

    Args:
        graph: The ONNX file.
        num_threads: Threads of what stays on the CPU.

    Raises:
        BundleError: the graph cannot be loaded.
        ServiceError: there is no CUDA provider, or attention would run on the CPU.
    """

    name = "onnxruntime-cuda"
    tolerance = 0.0
    promises_bits = False

    def __init__(self, graph: Path, num_threads: int) -> None:
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise ServiceError(
                "--provider: this onnxruntime has no CUDAExecutionProvider; "
                "install 'plaudit[service-gpu]' in an environment of its own"
            )
        providers = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
        self._session = open_session(graph, num_threads, providers)
        refuse_attention_on_cpu(self._session)
        self.inputs, self.outputs = _describe(self._session)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Array]:
        """Compute some outputs."""
        return [value.numpy() for value in self._bound(outputs, feeds, "cpu")]

    def run_kept(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Compute some outputs that stay on the device."""
        return self._bound(outputs, feeds, "cuda")

    def cut(self, kept: Any, num_tokens: int) -> Any:
        """The first tokens of a kept result; where there are more, by way of the CPU."""
        if kept.shape()[2] == num_tokens:
            return kept
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(kept.numpy()[:, :, :num_tokens]), "cuda", 0)

    def _bound(self, outputs: Sequence[str], feeds: Mapping[str, Any], device: str) -> list[Any]:
        binding = self._session.io_binding()
        for name in self.inputs:
            if isinstance(feeds[name], np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))
            else:
                binding.bind_ortvalue_input(name, feeds[name])
        for name in outputs:
            binding.bind_output(name, device)
        self._session.run_with_iobinding(binding)
        return list(binding.get_outputs())


class OpenVino:
    """OpenVINO on an x86 CPU: bfloat16 where the CPU computes in it, else float32.

    Args:
        graph: The ONNX file.
        num_threads: Threads of one call; 0: one per core that this process may use.

    Raises:
        BundleError: the graph cannot be loaded.
        ServiceError: OpenVINO is not installed.
    """

    promises_bits = False

    def __init__(self, graph: Path, num_threads: int) -> None:
        # A package that reports each import of openvino to Google Analytics; openvino goes on without it.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's way to hide a module
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise ServiceError(
                "--runtime openvino: openvino is not installed; pip install 'plaudit[openvino]'"
            ) from error
        core = openvino.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.name = f"openvino-cpu-{'bf16' if has_bf16 else 'fp32'}"
        self.tolerance = _BF16_TOLERANCE if has_bf16 else 0.0
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if has_bf16 else "f32",
            "INFERENCE_NUM_THREADS": num_threads or num_cores(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            model = core.compile_model(_with_repeated_heads(core.read_model(str(graph))), "CPU", options)
        except RuntimeError as error:
            raise _cannot_be_loaded(graph, error) from error
        self._request = model.create_infer_request()
        self.inputs = {
            tensor.any_name: Input(
                tuple(size.get_length() if size.is_static else None for size in tensor.partial_shape),
                tensor.element_type.to_dtype(),
            )
            for tensor in model.inputs
        }
        self.outputs = [tensor.any_name for tensor in model.outputs]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Array]:
        """Compute all outputs and copy some."""
        self._request.infer(dict(feeds))
        return [np.array(self._request.get_tensor(name).data) for name in outputs]

    run_kept = run

    def cut(self, kept: Array, num_tokens: int) -> Array:
        """The first tokens of a kept result."""
        return np.ascontiguousarray(kept[:, :, :num_tokens])


def _with_repeated_heads(model: Any) -> Any:
    """Gives every attention as many heads of keys and values as of queries, in place.

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
    return model


# By --runtime and --provider.
RUNTIMES: dict[tuple[str, str], Callable[[Path, int], Runtime]] = {
    ("onnxruntime", "cpu"): OnnxRuntime,
    ("onnxruntime", "cuda"): OnnxRuntimeCuda,
    ("openvino", "cpu"): OpenVino,
}


def refuse_attention_on_cpu(session: ort.InferenceSession) -> None:
    """Refuse a graph whose attention would run on the CPU beside a device: every call would wait for copies.

    Raises:
        ServiceError: some attention nodes are placed on the CPU.
    """
    on_cpu = sorted(
        node.name
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
        if "Attention" in node.op_type
    )
    if on_cpu:
        raise ServiceError(
            f"--provider: {len(on_cpu)} attention nodes would run on the CPU ({on_cpu[0]}, ...); "
            "use a newer onnxruntime-gpu, or --provider cpu"
        )


def open_session(
    graph: Path, num_threads: int = 0, providers: Sequence[Any] = ("CPUExecutionProvider",)
) -> ort.InferenceSession:
    """Load a graph in ONNX Runtime; `num_threads` 0: one for each core that this process may use.

    Raises:
        BundleError: the graph cannot be loaded.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads or num_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal; errors are raised, and reported by us
    # A spinning worker takes the core that the event loop and the tokenizer need between two calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        # Without its fallback: that would print, and try again with other providers than those that were asked for.
        return ort.InferenceSession(str(graph), options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # the runtime raises classes of its own for each way a graph can be wrong
        raise _cannot_be_loaded(graph, error) from error


def _describe(session: ort.InferenceSession) -> tuple[dict[str, Input], list[str]]:
    inputs = {
        tensor.name: Input(
            tuple(size if isinstance(size, int) else None for size in tensor.shape), _DTYPES.get(tensor.type)
        )
        for tensor in session.get_inputs()
    }
    return inputs, [tensor.name for tensor in session.get_outputs()]


def _cannot_be_loaded(graph: Path, error: Exception) -> BundleError:
    reason = str(error).strip().splitlines()[0]
    return BundleError(f"bundle {graph.parent}: {graph.name} cannot be loaded: {reason}")
