"""Brings scores of reference texts to mean 0 and standard deviation 1, so that reward models can be compared."""

import statistics

from plaudit_export.checks.comparison import Scores
from plaudit_export.errors import SourceError
from plaudit_service.bundles.bundle import Normalization


def fit(scores: Scores, *, scale: bool) -> Normalization:
    """Mean and (population) standard deviation of raw scores, in float64, rounded to 7 digits.

    Rounded, because the last bits of a score depend on the kind of CPU, and the fingerprint must not.

    Args:
        scores: shape (N,), of the graph that will serve.
        scale: also to standard deviation 1; else std is 1 and only the mean is taken off.

    Raises:
        SourceError: all scores are equal.
    """
    mean, std = statistics.fmean(scores), statistics.pstdev(scores)
    if scale and std <= 1e-9 * max(1.0, abs(mean)):
        raise SourceError(f"--normalize-on: all {len(scores)} texts score {mean:.6g}; give texts that differ")
    return Normalization(mean=float(f"{mean:.7g}"), std=float(f"{std:.7g}") if scale else 1.0)
