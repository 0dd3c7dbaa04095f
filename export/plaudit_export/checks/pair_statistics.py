"""Which of several rules preference pairs speak for. Pure; knows nothing of models and texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plaudit_export.checks.comparison import Scores

# With fewer pairs nothing is clear.
MIN_PAIRS = 200
# Standard errors that a mean has to be above 0.
CLEAR = 3.0
# Mean log-sigmoid of a score that knows nothing.
_CHANCE = math.log(0.5)


@dataclass(frozen=True)
class Standing:
    """How one rule ranks the pairs.

    Attributes:
        accuracy: share of the pairs whose chosen text scores higher; a tie does not.
        mean_margin: mean of score(chosen) - score(rejected).
        log_sigmoid: mean of log sigmoid(margin), which reward models are trained to raise.
        behind: how much that mean is behind the best rule's.
        behind_error: standard error of that difference, pair by pair.
    """

    accuracy: float
    mean_margin: float
    log_sigmoid: float
    behind: float
    behind_error: float


def log_sigmoid(margins: Scores) -> Scores:
    """Log sigmoid(margin) of each pair, shape (N,)."""
    return -np.logaddexp(0.0, -margins)


def standings(margins: Sequence[Scores]) -> list[Standing]:
    """How each rule ranks the pairs, in the order given.

    Args:
        margins: of each rule score(chosen) - score(rejected) of the same pairs, shape (N,).
    """
    logs = [log_sigmoid(each) for each in margins]
    best = max(logs, key=lambda each: float(each.mean()))
    return [
        Standing(_accuracy(each), float(each.mean()), float(log.mean()), *_mean_and_error(best - log))
        for each, log in zip(margins, logs, strict=True)
    ]


def clearly_better(one: Scores, other: Scores) -> bool:
    """Whether the pairs speak for one rule over another.

    Their mean log-sigmoid margins differ by more than 3 standard errors of the paired difference, over at least 200
    pairs, and the other one does not rank more pairs right: a rule under which scores hardly differ loses little on
    pairs that it cannot rank.

    Args:
        one: margins, shape (N,).
        other: of the same pairs.
    """
    return _is_above_zero(log_sigmoid(one) - log_sigmoid(other)) and _accuracy(one) >= _accuracy(other)


def evident(margins: Sequence[Scores]) -> int | None:
    """The rule that the pairs speak for over each other one and over chance; None: they cannot tell.

    Args:
        margins: of each rule, shape (N,).
    """
    best = max(range(len(margins)), key=lambda at: float(log_sigmoid(margins[at]).mean()))
    others = [each for at, each in enumerate(margins) if at != best]
    knows = _is_above_zero(log_sigmoid(margins[best]) - _CHANCE)
    return best if knows and all(clearly_better(margins[best], other) for other in others) else None


def _accuracy(margins: Scores) -> float:
    return float((margins > 0).mean())


def _is_above_zero(differences: Scores) -> bool:
    mean, error = _mean_and_error(differences)
    return len(differences) >= MIN_PAIRS and mean > CLEAR * error


def _mean_and_error(values: Scores) -> tuple[float, float]:
    """Mean, and its standard error: sample standard deviation / sqrt(N)."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return float(values.mean()), error
