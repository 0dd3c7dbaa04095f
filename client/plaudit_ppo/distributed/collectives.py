"""What the processes of a run tell each other; with one process, everything stays as it is."""

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import tensor


def largest(accelerator: Accelerator, value: float) -> float:
    """The largest value of all processes; NaN if one of them has NaN."""
    return float(accelerator.gather(tensor([value], device=accelerator.device)).max())


def share(accelerator: Accelerator, whole: Sequence[Any]) -> Sequence[Any]:
    """This process's part of a sequence that can be shared out evenly."""
    size = len(whole) // accelerator.num_processes
    return whole[accelerator.process_index * size :][:size]


def gather_sum(accelerator: Accelerator, value: int | None) -> int | None:
    """The sum over all processes; None if one of them has none."""
    values = [value] if accelerator.num_processes == 1 else gather_object([value])
    return None if None in values else sum(value or 0 for value in values)
