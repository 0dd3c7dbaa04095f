"""What a run has come to, made of its log alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from plaudit_ppo.training.held_out import metrics_of


@dataclass(frozen=True)
class TrainSummary:
    """The summary of a finished run, including the parts before a resume.

    Attributes:
        iterations: number of iterations.
        episodes: number of rollouts sampled.
        seconds: time of all iterations.
        call_s: seconds that the calls to the scorer took, added up.
        exposed_wait_s: seconds that training waited for scores.
        masked_share: share of the rollouts that got no score.
        retries: number of requests that had to be repeated; None if the scorer does not count them.
        first: the metrics of the first iteration.
        final: the metrics of the last iteration.
        held_out: the first and the last evaluation on held-out prompts, without the scores of single completions;
            empty if there was no evaluation.
    """

    iterations: int
    episodes: int
    seconds: float
    call_s: float
    exposed_wait_s: float
    masked_share: float
    retries: int | None
    first: Mapping[str, Any]
    final: Mapping[str, Any]
    held_out: Sequence[Mapping[str, Any]] = ()

    @property
    def exposed_wait_share(self) -> float:
        """Share of the time in which training stood still for scores."""
        return self.exposed_wait_s / self.seconds

    @property
    def extent(self) -> str:
        """How much there was, in words."""
        plural = "" if self.iterations == 1 else "s"
        return f"{self.iterations} iteration{plural}, {self.episodes} rollouts in {_duration(self.seconds)}"

    @property
    def scoring(self) -> str:
        """What scoring cost, in words."""
        repeated = "repeated requests are not counted" if self.retries is None else f"{self.retries} requests repeated"
        return (
            f"{_duration(self.call_s)} of calls, {100 * self.exposed_wait_share:.2g}% of the time spent waiting for "
            f"them, {self.masked_share:.2%} of the rollouts without a score, {repeated}"
        )

    def to_json(self) -> dict[str, Any]:
        """What summary.json holds."""
        values = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return values | {"exposed_wait_share": self.exposed_wait_share}


NOTHING_YET = TrainSummary(
    iterations=0,
    episodes=0,
    seconds=1.0,
    call_s=0.0,
    exposed_wait_s=0.0,
    masked_share=0.0,
    retries=None,
    first={},
    final={},
)


def summarize(log: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]] = ()) -> TrainSummary:
    """The summary of a run.

    Args:
        log: the lines of its log.jsonl, at least one.
        evaluations: the lines of its evaluations.jsonl.
    """
    retries = [line["scoring/retries"] for line in log]
    return TrainSummary(
        iterations=len(log),
        episodes=log[-1]["episode"],
        seconds=sum(line["time/iteration_s"] for line in log),
        call_s=sum(line["scoring/call_s"] for line in log),
        exposed_wait_s=sum(line["scoring/exposed_wait_s"] for line in log),
        masked_share=sum(line["scoring/masked_share"] for line in log) / len(log),
        retries=None if None in retries else sum(retries),
        first=log[0],
        final=log[-1],
        held_out=[metrics_of(evaluations[place]) for place in (0, -1)] if evaluations else (),
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:,.0f} s"
