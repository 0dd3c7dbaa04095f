"""OpenVINO on an x86 CPU: bfloat16 where the CPU computes in it, else float32."""

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from plaudit_service.engine.openvino_graph import prepare
from plaudit_service.engine.runtime import (
    BF16_TOLERANCE,
    CPU_COSTS,
    CPU_PREFIX_CACHE_BYTES,
    Array,
    Input,
    cannot_be_loaded,
    itemsize,
    no_tokens_shape,
)
from plaudit_service.errors import ServiceError


@cache
def _core() -> Any:
    """The only one of the process: OpenVINO 2026.4 frees the signal stack that each one sets up, and leaves it set."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise ServiceError("--runtime openvino: openvino is not installed; pip install 'plaudit[openvino]'") from error
    return openvino.Core()


def open_openvino(graph: Path, num_threads: int, num_calls: int) -> "list[OpenVino]":
    """Load a graph once for all threads, and where there are calls at once, once more for all of these.

    Args:
        graph: The ONNX file.
        num_threads: Threads of all calls together.
        num_calls: Calls at once.

    Raises:
        BundleError: the graph cannot be loaded.
        ServiceError: OpenVINO is not installed.
    """
    # A package that reports each import of openvino to Google Analytics; openvino goes on without it.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's way to hide a module
    core = _core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    common = {"INFERENCE_PRECISION_HINT": "bf16" if has_bf16 else "f32", "INFERENCE_NUM_THREADS": num_threads}
    try:
        model = prepare(core.read_model(str(graph)))
        whole = core.compile_model(model, "CPU", {**common, "PERFORMANCE_HINT": "LATENCY"})
        if num_calls == 1:
            return [OpenVino(whole, has_bf16=has_bf16)]
        shared = core.compile_model(model, "CPU", {**common, "NUM_STREAMS": num_calls})
    except RuntimeError as error:
        raise cannot_be_loaded(graph, error) from error
    return [OpenVino(whole, has_bf16=has_bf16), *(OpenVino(shared, has_bf16=has_bf16) for _ in range(num_calls))]


class OpenVino:
    """A graph in OpenVINO; computes one call at a time.

    Args:
        model: The compiled graph.
        has_bf16: Whether it computes in bfloat16.
    """

    promises_bits = False
    costs = CPU_COSTS
    prefix_cache_bytes = CPU_PREFIX_CACHE_BYTES

    def __init__(self, model: Any, *, has_bf16: bool) -> None:
        self.name = f"openvino-cpu-{'bf16' if has_bf16 else 'fp32'}"
        self.tolerance = BF16_TOLERANCE if has_bf16 else 0.0
        self._request = model.create_infer_request()
        self.inputs = {
            tensor.any_name: Input(
                tuple(size.get_length() if size.is_static else None for size in tensor.partial_shape),
                itemsize(tensor.element_type.to_dtype()),
            )
            for tensor in model.inputs
        }
        self._dtypes = {tensor.any_name: tensor.element_type.to_dtype() for tensor in model.inputs}
        self.outputs = [tensor.any_name for tensor in model.outputs]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Array]:
        """Compute all outputs and copy some."""
        self._request.infer(dict(feeds))
        return [np.array(self._request.get_tensor(name).data) for name in outputs]

    run_kept = run

    def fetch(self, kept: Array) -> Array:
        """A kept result, which is an array already."""
        return kept

    def cut(self, kept: Array, num_tokens: int) -> Array:
        """The first tokens of a kept result."""
        return np.ascontiguousarray(kept[:, :, :num_tokens])

    def no_tokens(self, name: str) -> Array:
        """Keys or values of no prefix."""
        return np.zeros(no_tokens_shape(self.inputs[name]), dtype=self._dtypes[name])
