"""Evaluations of a policy along its training, compared within equal KL; and mean and spread over seeds. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

Evaluation = Mapping[str, float]


def best_within(curve: Sequence[Evaluation], kl: float) -> Evaluation:
    """What one would keep of a training under a KL budget: of the evaluations within it, the one of the highest score.

    Chosen by the reward model's score, as gold is not known to whoever trains. A curve over the KL is not read between
    its evaluations, because the KL of a training also falls.

    Args:
        curve: the evaluations; the first is the one before training, which is within every budget.
        kl: the budget, in nats per completion; as an estimate from samples it may be below 0.
    """
    start, *others = curve
    return max([start, *(point for point in others if point["kl"] <= kl)], key=lambda point: point["score"])


def mixed_at(points: Sequence[Evaluation], kl: float) -> Evaluation | None:
    """What a mixture of two ways reaches at a KL: one of two neighbours completes the prompt, drawn by weight.

    Every figure of a mixture is the weighted mean; its KL, being convex, is at most that.

    Args:
        points: by rising KL.
        kl: in nats per completion.

    Returns:
        None: the KL lies outside of the points.
    """
    for low, high in pairwise(points):
        if low["kl"] <= kl <= high["kl"]:
            weight = (kl - low["kl"]) / (high["kl"] - low["kl"])
            return {name: (1 - weight) * low[name] + weight * high[name] for name in low}
    return None


def best_gold(curve: Sequence[Evaluation]) -> Evaluation:
    """Where gold is highest."""
    return max(curve, key=lambda point: point["gold"])


def mean_and_std(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation over seeds, as text; the mean alone where there is one seed."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):z.2f}{spread}"
