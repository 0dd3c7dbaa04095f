"""What an engine needs of a runtime, which runs an ONNX graph; and what its device costs.

A runtime takes and gives tensors by name. Knows nothing of sequences, batches or scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from plaudit_service.errors import BundleError

Array = npt.NDArray[Any]

# In bfloat16, whose fraction has 7 bits, scores moved by up to a tenth of their standard deviation; a wrong token or
# padding moves them by about one.
BF16_TOLERANCE = 0.25


@dataclass(frozen=True)
class Costs:
    """What calls cost on a device, in tokens; the choice of batches goes by it.

    Attributes:
        call_tokens: A call takes about as long as this many tokens take beyond its own.
        prefix_token: Attending to a token of a prefix, whose keys and values are copied for every row, counts as this
            part of computing a token.
        batch_tokens: Padded tokens of one call, unless the operator says otherwise.
        row_multiple: Rows, with the prefix before them, are padded to a multiple of this many tokens.
        pads: Whether rows are padded to one length; else who computes makes batches of its own, and calls are lists.
        max_rows: Sequences of one call; None: as many as its tokens allow.
    """

    call_tokens: int
    prefix_token: float
    batch_tokens: int
    row_multiple: int = 1
    pads: bool = True
    max_rows: int | None = None


# On two cores: 2 tokens took 4.9 ms and 512 took 142 ms; batches of 512 to 2,048 padded tokens were the fastest
# (docs/development/decisions/serving.md).
CPU_COSTS = Costs(call_tokens=16, prefix_token=1 / 16, batch_tokens=1024)
CPU_PREFIX_CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class Input:
    """An input of a graph: its sizes (None where they vary), and the bytes of one number."""

    shape: tuple[int | None, ...]
    itemsize: int


class Runtime(Protocol):
    """A loaded graph.

    Attributes:
        name: Runtime and device, and the precision where it is not the graph's own: `onnxruntime-cpu`.
        inputs: By name.
        outputs: Names.
        tolerance: How far it may move a score, in standard deviations of the golden texts' scores; 0: not at all.
        promises_bits: Whether a score's bits are to be the same in every batch.
        costs: Of its device.
        prefix_cache_bytes: Keys and values of prefixes that are kept, unless the operator says otherwise.
    """

    name: str
    inputs: dict[str, Input]
    outputs: list[str]
    tolerance: float
    promises_bits: bool
    costs: Costs
    prefix_cache_bytes: int

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Array]:
        """Compute some outputs; raises whatever the runtime raises."""
        ...

    def run_kept(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """The same, where the results stay on the device, to be fed to later calls."""
        ...

    def fetch(self, kept: Any) -> Array:
        """A kept result, from where it is."""
        ...

    def cut(self, kept: Any, num_tokens: int) -> Any:
        """The first tokens (axis 2) of a kept result."""
        ...

    def no_tokens(self, name: str) -> Any:
        """What to feed to an input of keys or values, shape (N, H, P, D), where there is no prefix: (1, H, 0, D)."""
        ...


def no_tokens_shape(tensor: Input) -> list[int]:
    """(1, H, 0, D) of an input of shape (N, H, P, D)."""
    _, heads, _, size = tensor.shape
    return [1, heads or 0, 0, size or 0]


def cannot_be_loaded(graph: Path, error: Exception) -> BundleError:
    """The error of a graph that its runtime refuses: the first line of what it says."""
    reason = str(error).strip().splitlines()[0]
    return BundleError(f"bundle {graph.parent}: {graph.name} cannot be loaded: {reason}")


def itemsize(dtype: Any) -> int:
    """Bytes of one number of a numpy type."""
    return int(np.dtype(dtype).itemsize)
