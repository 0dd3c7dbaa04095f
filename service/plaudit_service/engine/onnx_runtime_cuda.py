"""ONNX Runtime on a CUDA device: what has to be there, what is refused, what stays on it.

Not run on one yet, but on a stub that stands in for the CUDA libraries (tests/cuda_stub).
"""

import contextlib
import ctypes
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from plaudit_service.engine.onnx_runtime import describe, open_session
from plaudit_service.engine.runtime import BF16_TOLERANCE, CPU_PREFIX_CACHE_BYTES, Array, Costs, no_tokens_shape
from plaudit_service.errors import BundleError, ServiceError

_PROVIDER = "CUDAExecutionProvider"
# In standard deviations of the golden scores: some times what rounding each operator to the precision moves them by
# (docs/development/decisions/export.md). Not held against a GPU yet.
TOLERANCES = {"fp16": 0.05, "bf16": BF16_TOLERANCE}
# Estimates: a call of some hundred kernels, and work for a chip that computes thousands of tokens in the same time.
# Attention kernels choose other code where a total length is no multiple of 8.
_COSTS = Costs(call_tokens=256, prefix_token=1 / 64, batch_tokens=16_384, row_multiple=8)
# Of the memory that the weights leave.
_PREFIX_CACHE_SHARE = 1 / 8
# ONNX's numbers of element types, for those that numpy does not have.
_ELEMENT_TYPES = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": 16}
_CUDA_RUNTIMES = ("libcudart.so.13", "libcudart.so.12")


class OnnxRuntimeCuda:
    """A graph on a CUDA device, TF32 off, keys and values of prefixes kept there.

    Args:
        graph: The ONNX file.
        precision: Of the graph: `fp32`, `fp16`, `bf16` or `int8`.
        num_threads: Threads of what stays on the CPU.
        device_id: Number of the device.

    Raises:
        BundleError: the graph cannot be loaded.
        ServiceError: there is no such device, or some of the graph's work would be done on the CPU.
    """

    name = "onnxruntime-cuda"
    promises_bits = False
    costs = _COSTS

    def __init__(self, graph: Path, precision: str, num_threads: int, device_id: int = 0) -> None:
        self._device_id = device_id
        require_device(device_id)
        # In the reserve of the arena, weights take a tenth more of the memory.
        entries = {"session.use_device_allocator_for_initializers": "1"}
        providers = [(_PROVIDER, {"device_id": str(device_id), "use_tf32": "0"}), "CPUExecutionProvider"]
        room_bytes = free_memory_bytes(device_id)
        try:
            # Planned blocks lie beside those of the first call: twice the memory, as lengths are seldom the same.
            self._session = open_session(graph, num_threads, providers, entries, plans_memory=False)
        except BundleError as error:
            if "out of memory" not in str(error):
                raise
            raise ServiceError(
                f"--device cuda:{device_id}: {graph} does not fit into the {room_bytes} bytes that are free on this "
                "device; give another device, or export the checkpoint with a smaller --precision"
            ) from error
        refuse_fallback(self._session, device_id)
        refuse_attention_on_cpu(self._session)
        self.inputs, self.outputs = describe(self._session)
        self._types = {tensor.name: tensor.type for tensor in self._session.get_inputs()}
        self.tolerance = TOLERANCES.get(precision, 0.0)
        free_bytes = free_memory_bytes(device_id)
        self.prefix_cache_bytes = prefix_cache_bytes(free_bytes)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Array]:
        """Compute some outputs."""
        return [value.numpy() for value in self._bound(outputs, feeds, "cpu", 0)]

    def run_kept(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Compute some outputs that stay on the device."""
        return self._bound(outputs, feeds, "cuda", self._device_id)

    def fetch(self, kept: Any) -> Array:
        """A kept result, copied from the device."""
        fetched: Array = kept.numpy()
        return fetched

    def cut(self, kept: Any, num_tokens: int) -> Any:
        """The first tokens of a kept result; where there are more (a graph of the first form), by way of the CPU."""
        if kept.shape()[2] == num_tokens:
            return kept
        first = np.ascontiguousarray(kept.numpy()[:, :, :num_tokens])
        return ort.OrtValue.ortvalue_from_numpy(first, "cuda", self._device_id)

    def no_tokens(self, name: str) -> Any:
        """Keys or values of no prefix, on the device; numpy has no bfloat16."""
        element_type = _ELEMENT_TYPES[self._types[name]]
        shape = no_tokens_shape(self.inputs[name])
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, element_type, "cuda", self._device_id)

    def _bound(self, outputs: Sequence[str], feeds: Mapping[str, Any], device: str, device_id: int) -> list[Any]:
        binding = self._session.io_binding()
        for name in self.inputs:
            if isinstance(feeds[name], np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))
            else:
                binding.bind_ortvalue_input(name, feeds[name])
        for name in outputs:
            binding.bind_output(name, device, device_id)
        self._session.run_with_iobinding(binding)
        return list(binding.get_outputs())


def require_device(device_id: int) -> None:
    """Refuse to go on without the device: ONNX Runtime would only warn, and compute on the CPU.

    Raises:
        ServiceError: this onnxruntime has no CUDA, its libraries cannot be loaded, or there is no such device.
    """
    if _PROVIDER not in ort.get_available_providers():
        raise ServiceError(
            f"--device cuda:{device_id}: this onnxruntime has no {_PROVIDER}; "
            "install 'plaudit[service-gpu]' in an environment of its own"
        )
    ort.set_default_logger_severity(4)  # fatal; errors are raised, and reported by us
    with contextlib.redirect_stdout(io.StringIO()) as missing:
        ort.preload_dlls()  # those that pip brought
    try:
        ort.OrtValue.ortvalue_from_shape_and_type([1], np.float32, "cuda", device_id)
    except Exception as error:  # the runtime raises classes of its own
        reason = (missing.getvalue().strip() or str(error).strip()).splitlines()[0]
        raise _unusable(device_id, reason) from error


def refuse_fallback(session: ort.InferenceSession, device_id: int) -> None:
    """Refuse a session that ONNX Runtime made for the CPU though the device was asked for.

    Raises:
        ServiceError: it runs elsewhere.
    """
    first = session.get_providers()[0]
    if first != _PROVIDER:
        raise _unusable(device_id, f"the graph would run on {first}")


def _unusable(device_id: int, reason: str) -> ServiceError:
    return ServiceError(
        f"--device cuda:{device_id} cannot be used ({reason}); 'plaudit[service-gpu]' brings the CUDA libraries, "
        "the machine needs a driver for them and a device of this number (nvidia-smi); or give --device cpu"
    )


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
            f"--device: {len(on_cpu)} attention nodes would run on the CPU ({on_cpu[0]}, ...); "
            "use a newer onnxruntime-gpu, or --device cpu"
        )


def prefix_cache_bytes(free_bytes: int | None) -> int:
    """A share of the memory that a device has left; where that is not known, what the CPU has."""
    return CPU_PREFIX_CACHE_BYTES if free_bytes is None else int(_PREFIX_CACHE_SHARE * free_bytes)


def free_memory_bytes(device_id: int) -> int | None:
    """Memory of the device that nothing holds, asked of the CUDA that ONNX Runtime has loaded; None: not known."""
    for library in _CUDA_RUNTIMES:
        try:
            cuda = ctypes.CDLL(library)
        except OSError:
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        if cuda.cudaSetDevice(device_id) == 0 and cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0:
            return free.value
    return None
