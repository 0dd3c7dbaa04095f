"""What the figures of a run say is likely wrong: from its log to named findings, each with its figures and a cause.

Knows nothing of files and pages. docs/ppo-troubleshooting.md has a section for each name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

_WINDOW = 5  # iterations of the start and of the end that are compared
_LEAST_EOS_SHARE = 0.5
_LEAST_STD = 1e-6
_CONSTANT_ITERATIONS = 3
_JUMP_NATS, _JUMP_FACTOR = 5.0, 3.0
_DRIFT = 1.5

Log = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Finding:
    """Something that a run's figures show.

    Attributes:
        name: its heading in docs/ppo-troubleshooting.md.
        figures: what was measured, and the limit.
        cause: the likely cause, and what to do first.
    """

    name: str
    figures: str
    cause: str


def find(log: Log) -> list[Finding]:
    """The findings of a run so far; none where nothing stands out, or where there is too little to tell.

    Args:
        log: lines of log.jsonl. A figure that is null or missing counts as not measured.
    """
    looks = (_unfinished, _constant_scores, _kl_jump, _value_error, _length_drift)
    return [finding for look in looks if (finding := look(log)) is not None]


def _unfinished(log: Log) -> Finding | None:
    shares = _series(log, "val/eos_share")[-_WINDOW:]
    if not shares or fmean(shares) >= _LEAST_EOS_SHARE:
        return None
    return Finding(
        "Unfinished completions",
        f"{fmean(shares):.0%} of the rollouts end with EOS (val/eos_share, the last {len(shares)} iterations), "
        f"below {_LEAST_EOS_SHARE:.0%}",
        "max_completion_tokens is too small, or the policy ends its turns with a token that is not among its EOS; the "
        "missing-EOS rule then decides most scores",
    )


def _constant_scores(log: Log) -> Finding | None:
    spreads = _series(log, "scoring/score_std")[-_CONSTANT_ITERATIONS:]
    if len(spreads) < _CONSTANT_ITERATIONS or max(spreads) > _LEAST_STD:
        return None
    return Finding(
        "Constant scores",
        f"the scores of an iteration differ by at most {max(spreads):.1g} (scoring/score_std, the last "
        f"{len(spreads)} iterations)",
        "the scorer does not see the completions: look at its chat template and at truncation; or the policy always "
        "writes the same",
    )


def _kl_jump(log: Log) -> Finding | None:
    numbered = [(line["iteration"], line["objective/kl"]) for line in log if line.get("objective/kl") is not None]
    for (_, before), (iteration, kl) in pairwise(numbered):
        if kl >= _JUMP_NATS and kl >= _JUMP_FACTOR * before:
            return Finding(
                "KL jump",
                f"the KL goes from {before:.3g} to {kl:.3g} nats in iteration {iteration} (objective/kl)",
                "the learning rate is too high for advantages that are mostly noise while the critic is new; lower it, "
                "or let the critic warm up",
            )
    return None


def _value_error(log: Log) -> Finding | None:
    known = _series(log, "val/explained_variance")
    if len(known) < 2 * _WINDOW or fmean(known[-_WINDOW:]) >= 0:
        return None
    return Finding(
        "Value error above variance",
        f"the explained variance of the returns is {fmean(known[-_WINDOW:]):.3g} (val/explained_variance, the last "
        f"{_WINDOW} iterations), below 0",
        "the critic predicts worse than a constant, so advantages are mostly its noise; raise critic_learning_rate or "
        "value_clip_range, or start it from the reward model",
    )


def _length_drift(log: Log) -> Finding | None:
    lengths = _series(log, "tokens/completion_mean")
    if len(lengths) < 2 * _WINDOW:
        return None
    start, end = fmean(lengths[:_WINDOW]), fmean(lengths[-_WINDOW:])
    if start / _DRIFT <= end <= start * _DRIFT:
        return None
    return Finding(
        "Length drift",
        f"completions go from {start:.3g} to {end:.3g} tokens (tokens/completion_mean, the first and the last "
        f"{_WINDOW} iterations), by more than a factor of {_DRIFT:g}",
        "the reward model rewards length rather than content; look at the samples, and bound the length",
    )


def _series(log: Log, metric: str) -> list[float]:
    return [line[metric] for line in log if line.get(metric) is not None]
