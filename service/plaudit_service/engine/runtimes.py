"""Which runtimes there are, and on which devices."""

from collections.abc import Sequence
from pathlib import Path

from plaudit_service.engine.machine import num_cores
from plaudit_service.engine.onnx_runtime import OnnxRuntime
from plaudit_service.engine.onnx_runtime_cuda import OnnxRuntimeCuda
from plaudit_service.engine.openvino_runtime import open_openvino
from plaudit_service.engine.runtime import Runtime
from plaudit_service.errors import BundleError, SettingsError


def open_runtimes(
    graph: Path, precision: str, *, runtime: str, device: str, num_threads: int, num_calls: int
) -> Sequence[Runtime]:
    """Load a graph.

    Args:
        graph: The ONNX file.
        precision: Of the graph: `fp32`, `fp16`, `bf16` or `int8`.
        runtime: `onnxruntime` or `openvino`.
        device: `cpu`, `cuda` (the first one) or `cuda:N`.
        num_threads: Threads of a call that has the whole device; 0: one per core that this process may use.
        num_calls: Calls at once.

    Returns:
        A runtime of the whole device, and where there are several calls at once, one with a share of it for each.

    Raises:
        BundleError: the graph cannot be loaded, or not on this device.
        SettingsError: the runtime has no such device, or no calls at once there.
        ServiceError: the device is not there.
    """
    kind, _, number = device.partition(":")
    if kind == "cuda" and runtime == "onnxruntime":
        if num_calls > 1:
            raise SettingsError(f"--engine-calls {num_calls}: one call fills a CUDA device; leave it out")
        return [OnnxRuntimeCuda(graph, precision, num_threads, int(number or 0))]
    if kind != "cpu":
        raise SettingsError(f"--runtime {runtime} cannot compute on {device}; leave --device at cpu")
    if precision == "bf16":
        raise BundleError(
            f"bundle {graph.parent}: precision bf16 runs on CUDA devices only; give --device cuda, or export it with "
            "--precision fp32"
        )
    threads = num_threads or num_cores()
    if num_calls > threads:
        raise SettingsError(f"--engine-calls {num_calls}: more than the engine's {threads} threads; lower it")
    if runtime == "openvino":
        return open_openvino(graph, threads, num_calls)
    return [OnnxRuntime(graph, threads), *_shares(graph, threads, num_calls)]


def _shares(graph: Path, threads: int, num_calls: int) -> list[OnnxRuntime]:
    """A session without threads of its own computes on those that call it, and so can be one for all of them."""
    if num_calls == 1:
        return []
    if threads // num_calls == 1:
        return [OnnxRuntime(graph, 1)] * num_calls
    return [OnnxRuntime(graph, threads // num_calls) for _ in range(num_calls)]
