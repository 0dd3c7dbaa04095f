"""How many calls of the engine run at once, unless the operator says: by device, threads and memory."""

from collections.abc import Sequence
from pathlib import Path

from plaudit_service.bundles.bundle import GRAPH, GRAPH_DATA, Bundle
from plaudit_service.engine.machine import memory_bytes

# Calls at once load the graph once more. That is worth it where both copies leave most of the memory to others.
_MAX_MEMORY_SHARE = 1 / 4


def default_calls(bundles: Sequence[Bundle], device: str, num_threads: int) -> int:
    """What `calls_for` says of these bundles and this machine."""
    weights_bytes = sum(graph_bytes(bundle.path) for bundle in bundles)
    return calls_for(device, num_threads, weights_bytes=weights_bytes, memory_bytes=memory_bytes())


def calls_for(device: str, num_threads: int, *, weights_bytes: int, memory_bytes: int) -> int:
    """Two on two threads of a CPU, where twice the weights fit a quarter of the memory; else one.

    More threads were not measured yet (docs/development/decisions/serving.md).
    """
    fits = 2 * weights_bytes <= _MAX_MEMORY_SHARE * memory_bytes
    return 2 if device == "cpu" and num_threads == 2 and fits else 1


def graph_bytes(bundle: Path) -> int:
    """Bytes of a bundle's graph and weights."""
    files = (bundle / name for name in (GRAPH, GRAPH_DATA))
    return sum(file.stat().st_size for file in files if file.exists())
