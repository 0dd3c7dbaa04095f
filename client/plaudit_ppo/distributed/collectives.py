"""What the processes of a run tell each other; with one process, everything stays as it is."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import tensor

from plaudit_ppo.errors import PPOError

_T = TypeVar("_T")


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


def from_first_process(accelerator: Accelerator, work: Callable[[], _T]) -> _T:
    """What the first process makes of a piece of work, in every process.

    Raises:
        PPOError: the work has raised it; in every process, so that none waits for the first.
    """
    done: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            done[0] = work()
        except PPOError as error:
            done[1] = error
    result, failure = broadcast_object_list(done)
    if failure is not None:
        raise failure
    return result  # type: ignore[no-any-return]


def raise_any(accelerator: Accelerator, failure: PPOError | None) -> None:
    """Raises what any process has failed with, in every process, so that none waits for another."""
    failures = [failure] if accelerator.num_processes == 1 else gather_object([failure])
    for each in [failure, *failures]:
        if each is not None:
            raise each
