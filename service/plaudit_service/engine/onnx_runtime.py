"""ONNX Runtime on the CPU: in float32 the bits of a score do not depend on the batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from plaudit_service.engine.machine import num_cores
from plaudit_service.engine.runtime import (
    CPU_COSTS,
    CPU_PREFIX_CACHE_BYTES,
    Array,
    Input,
    cannot_be_loaded,
    no_tokens_shape,
)

# ONNX Runtime keeps the memory of its largest call. One beyond a batch, as on a long text, gives it back at its end.
_GIVE_BACK = ort.RunOptions()
_GIVE_BACK.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
_DTYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16}
_ITEMSIZES = {"tensor(int64)": 8, "tensor(float)": 4, "tensor(float16)": 2, "tensor(bfloat16)": 2}


class OnnxRuntime:
    """A graph in ONNX Runtime on the CPU.

    Args:
        graph: The ONNX file.
        num_threads: Threads of one call; 0: one per core that this process may use.

    Raises:
        BundleError: the graph cannot be loaded.
    """

    name = "onnxruntime-cpu"
    tolerance = 0.0
    promises_bits = True
    costs = CPU_COSTS
    prefix_cache_bytes = CPU_PREFIX_CACHE_BYTES

    def __init__(self, graph: Path, num_threads: int) -> None:
        self._session = open_session(graph, num_threads)
        self.inputs, self.outputs = describe(self._session)
        self._dtypes = {tensor.name: _DTYPES.get(tensor.type) for tensor in self._session.get_inputs()}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Array]:
        """Compute some outputs."""
        options = _GIVE_BACK if feeds["input_ids"].size > self.costs.batch_tokens else None
        result: list[Array] = self._session.run(list(outputs), dict(feeds), options)
        return result

    run_kept = run

    def fetch(self, kept: Array) -> Array:
        """A kept result, which is an array already."""
        return kept

    def cut(self, kept: Array, num_tokens: int) -> Array:
        """The first tokens of a kept result."""
        return kept[:, :, :num_tokens]

    def no_tokens(self, name: str) -> Array:
        """Keys or values of no prefix."""
        return np.zeros(no_tokens_shape(self.inputs[name]), dtype=self._dtypes[name])


def open_session(
    graph: Path,
    num_threads: int = 0,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    entries: Mapping[str, str] | None = None,
    *,
    plans_memory: bool = True,
) -> ort.InferenceSession:
    """Load a graph in ONNX Runtime.

    Args:
        graph: The ONNX file.
        num_threads: Threads of one call; 0: one for each core that this process may use.
        providers: What runs it, in order.
        entries: More entries of the session's config.
        plans_memory: Whether the second call of the same shapes takes one block for all that the first one took.

    Raises:
        BundleError: the graph cannot be loaded.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads or num_cores()
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = plans_memory
    options.log_severity_level = 4  # fatal; errors are raised, and reported by us
    # A spinning worker takes the core that the event loop and the tokenizer need between two calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    try:
        # Without its fallback: that would print, and try again with other providers than those that were asked for.
        return ort.InferenceSession(str(graph), options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # the runtime raises classes of its own for each way a graph can be wrong
        raise cannot_be_loaded(graph, error) from error


def describe(session: ort.InferenceSession) -> tuple[dict[str, Input], list[str]]:
    """Inputs by name, and names of the outputs."""
    inputs = {
        tensor.name: Input(
            tuple(size if isinstance(size, int) else None for size in tensor.shape), _ITEMSIZES.get(tensor.type, 0)
        )
        for tensor in session.get_inputs()
    }
    return inputs, [tensor.name for tensor in session.get_outputs()]
