"""A reward model in torch on the CPU, as a runtime of the service: every operator computes in the model's own type.

It says what a precision costs that ONNX Runtime does not compute in on a CPU. Knows nothing of files.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from plaudit_export.checkpoints.checkpoint import Checkpoint
from plaudit_export.checkpoints.loading import network
from plaudit_export.graphs.tracing import CausalGraph, EncoderGraph, key_value_shapes
from plaudit_export.quiet import quiet
from plaudit_service.engine.runtime import CPU_COSTS, CPU_PREFIX_CACHE_BYTES, Array, Input, no_tokens_shape

_INT64_BYTES = 8


class TorchRuntime:
    """The module that is traced into a graph, with the graph's inputs and outputs.

    Args:
        checkpoint: the reward model, in any precision.
        tolerance: as of `Runtime`.
    """

    name = "torch-cpu"
    promises_bits = False
    costs = CPU_COSTS
    prefix_cache_bytes = CPU_PREFIX_CACHE_BYTES

    def __init__(self, checkpoint: Checkpoint, tolerance: float = 0.0) -> None:
        self.tolerance = tolerance
        self._layers: list[str] = []
        if checkpoint.kind == "causal":
            # Without a mask, eager torch aligns causality wrongly behind a prefix.
            self._module: torch.nn.Module = CausalGraph(checkpoint.model, has_mask=True)
            self._dtype = next(network(checkpoint.model).parameters()).dtype
            names = ["attention_mask", "position_ids", "prefix_index", "last_index", "token_index", "present_index"]
            with quiet(), torch.no_grad():
                shapes = key_value_shapes(checkpoint)
            self._layers = [f"{layer}.{part}" for layer in range(len(shapes)) for part in ("key", "value")]
        else:
            self._module = EncoderGraph(checkpoint.model)
            names = ["attention_mask", *(["token_type_ids"] if checkpoint.token_type_ids else [])]
            shapes = []
        self.inputs = {name: Input((None, None), _INT64_BYTES) for name in ["input_ids", *names]}
        sizes = [size for heads, key, value in shapes for size in ((heads, key), (heads, value))]
        for layer, (heads, size) in zip(self._layers, sizes, strict=True):
            self.inputs[f"past.{layer}"] = Input((None, heads, None, size), self._dtype.itemsize)
        self.outputs = ["scores", *(f"present.{layer}" for layer in self._layers)]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Array]:
        """Compute some outputs."""
        return list(map(self.fetch, self.run_kept(outputs, feeds)))

    def run_kept(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[torch.Tensor]:
        """The same as torch keeps them: numpy has no bfloat16."""
        given = {name: torch.as_tensor(feeds[name]) for name in self.inputs}
        pasts = [given.pop(f"past.{layer}") for layer in self._layers]
        with quiet(), torch.no_grad():
            if not self._layers:
                return [self._module(**given)]
            scores, _, present = self._module(**given, past=list(zip(pasts[::2], pasts[1::2], strict=True)))
        kept = [value for pair in present for value in pair]
        computed = {"scores": scores} | {f"present.{layer}": kept[at] for at, layer in enumerate(self._layers)}
        return [computed[name] for name in outputs]

    def fetch(self, kept: torch.Tensor) -> Array:
        """A kept result as an array."""
        return kept.float().numpy()

    def cut(self, kept: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """The first tokens of a kept result."""
        return kept[:, :, :num_tokens]

    def no_tokens(self, name: str) -> torch.Tensor:
        """Keys or values of no prefix."""
        return torch.zeros(no_tokens_shape(self.inputs[name]), dtype=self._dtype)
