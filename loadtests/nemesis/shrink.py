"""The shortest schedule that still fails, by leaving faults out. Pure but for the question, which runs a schedule.

Zeller and Hildebrandt 2002, "Simplifying and Isolating Failure-Inducing Input", algorithm ddmin. Deviation: the empty
schedule is tried first, because many failures need no fault at all.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def shrink(faults: Sequence[_T], fails: Callable[[Sequence[_T]], bool], max_attempts: int) -> tuple[Sequence[_T], int]:
    """Leave out faults while what is left still fails.

    Args:
        faults: A schedule that failed.
        fails: Runs a schedule and says whether it fails, too.
        max_attempts: How many may be run.

    Returns:
        The shortest one that failed, and how many were run.
    """
    attempts = 0

    def still_fails(left: Sequence[_T]) -> bool:
        nonlocal attempts
        attempts += 1
        return fails(left)

    if not faults or max_attempts < 1:
        return faults, 0
    if still_fails(faults[:0]):
        return faults[:0], attempts
    num_parts = 2
    while len(faults) > 1 and attempts < max_attempts:
        size = -(-len(faults) // num_parts)
        for start in range(0, len(faults), size):
            left = [*faults[:start], *faults[start + size :]]
            if attempts < max_attempts and left and still_fails(left):
                faults, num_parts = left, max(2, num_parts - 1)
                break
        else:
            if size == 1:
                break
            num_parts = min(len(faults), 2 * num_parts)
    return faults, attempts
