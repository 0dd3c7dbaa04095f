"""Which runtimes there are, and on which devices."""

from pathlib import Path

from plaudit_service.engine.onnx_runtime import OnnxRuntime
from plaudit_service.engine.onnx_runtime_cuda import OnnxRuntimeCuda
from plaudit_service.engine.openvino_runtime import OpenVino
from plaudit_service.engine.runtime import Runtime
from plaudit_service.errors import BundleError, SettingsError


def open_runtime(graph: Path, precision: str, *, runtime: str, device: str, num_threads: int) -> Runtime:
    """Load a graph.

    Args:
        graph: The ONNX file.
        precision: Of the graph: `fp32`, `fp16`, `bf16` or `int8`.
        runtime: `onnxruntime` or `openvino`.
        device: `cpu`, `cuda` (the first one) or `cuda:N`.
        num_threads: Threads of one call; 0: one per core that this process may use.

    Raises:
        BundleError: the graph cannot be loaded, or not on this device.
        SettingsError: the runtime has no such device.
        ServiceError: the device is not there.
    """
    kind, _, number = device.partition(":")
    if kind == "cuda" and runtime == "onnxruntime":
        return OnnxRuntimeCuda(graph, precision, num_threads, int(number or 0))
    if kind != "cpu":
        raise SettingsError(f"--runtime {runtime} has no device {device}; leave --device at cpu")
    if precision == "bf16":
        raise BundleError(
            f"bundle {graph.parent}: precision bf16 runs on CUDA devices only; give --device cuda, or export it with "
            "--precision fp32"
        )
    return OpenVino(graph, num_threads) if runtime == "openvino" else OnnxRuntime(graph, num_threads)
