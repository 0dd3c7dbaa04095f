"""Evaluations of a policy along its training, compared at equal KL; and mean and spread over seeds. Pure arithmetic."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

Evaluation = Mapping[str, float]


def at_kl(curve: Sequence[Evaluation], kl: float, name: str) -> float | None:
    """A figure where the policy first reaches a KL, between evaluations by a straight line over the KL.

    Args:
        curve: the evaluations in the order of training.
        kl: in nats per completion.
        name: which figure.

    Returns:
        None if the KL is not reached.
    """
    if not curve or curve[0]["kl"] > kl:
        return None
    for before, after in pairwise(curve):
        if before["kl"] <= kl <= after["kl"]:
            width = after["kl"] - before["kl"]
            share = (kl - before["kl"]) / width if width else 0.0
            return before[name] + share * (after[name] - before[name])
    return None


def mean_and_std(values: Sequence[float | None]) -> str:
    """Mean ± sample standard deviation over seeds, as text; `-` where a seed has no value."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values) or not numbers:
        return "-"
    mean = statistics.fmean(numbers)
    return f"{mean:.2f} ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else f"{mean:.2f}"


def common_levels(curves: Sequence[Sequence[Evaluation]], step: float) -> list[float]:
    """Multiples of `step` nats that every curve reaches."""
    highest = min(max(point["kl"] for point in curve) for curve in curves)
    return [step * number for number in range(1, 1 + math.floor(highest / step))]
