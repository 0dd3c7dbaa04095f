"""Several scorers as one."""

import statistics
from collections.abc import Sequence

from plaudit_client import Score, Scores
from plaudit_client.items import num_sequences
from plaudit_ppo.scoring.items import Item
from plaudit_ppo.scoring.pool import Extra, Scored, Scorer, ask, in_thread


class CombinedScorer:
    """Several weighted scorers as one, called at the same time. A rollout has a score only if every scorer gives one.

    x = weights * scores. sum: Σ x; mean: mean(x); min: the smallest x; mean_minus_std: mean(x) - std_coef * std(x),
    biased. Coste et al. 2024, "Reward model ensembles help mitigate overoptimization", arXiv 2310.02743.

    Args:
        scorers: one or more scorers.
        weights: one weight for each scorer; None: 1 for each.
        combination: "sum", "mean", "min" or "mean_minus_std".
        std_coef: weight of the standard deviation, for "mean_minus_std".

    Raises:
        ValueError: not one weight for each scorer.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        weights: Sequence[float] | None = None,
        *,
        combination: str = "sum",
        std_coef: float = 1.0,
    ) -> None:
        self._scorers = tuple(scorers)
        self._weights = tuple(weights) if weights else (1.0,) * len(self._scorers)
        if len(self._weights) != len(self._scorers):
            raise ValueError(f"{len(self._weights)} weights for {len(self._scorers)} scorers; give one for each")
        self._combination = combination
        self._std_coef = std_coef

    @property
    def retries(self) -> int | None:
        """Requests that all of them had to repeat so far; None if one of them does not count."""
        counts: list[int | None] = [getattr(scorer, "retries", None) for scorer in self._scorers]
        return None if None in counts else sum(count or 0 for count in counts)

    def __call__(self, items: Sequence[Item], extra: Extra = ()) -> Scores:
        """Scores items with every scorer, and combines; `extra` goes to those that take it.

        Raises:
            Exception: whatever one of them raises, or ValueError for an answer of the wrong length.
        """
        futures = [in_thread(lambda scorer=scorer: ask(scorer, items, extra)) for scorer in self._scorers]  # type: ignore[misc]
        answers = [future.result() for future in futures]
        expected = sum(map(num_sequences, items))
        for number, answer in enumerate(answers):
            if len(answer) != expected:
                raise ValueError(f"scorer {number}: {len(answer)} results for {expected} completions")
        results = tuple(self._combine(parts) for parts in zip(*answers, strict=True))
        fingerprints = [getattr(answer, "fingerprint", None) for answer in answers]
        return Scores(results, fingerprint=None if None in fingerprints else " + ".join(map(str, fingerprints)))

    def _combine(self, parts: Sequence[Scored]) -> Score:
        for number, part in enumerate(parts):
            if part.status != "ok" or part.score is None:
                detail = getattr(part, "detail", None) or part.status
                return Score("failed", None, detail=f"scorer {number}: {detail}")
        weighted = [weight * float(part.score or 0.0) for weight, part in zip(self._weights, parts, strict=True)]
        return Score("ok", combine(weighted, combination=self._combination, std_coef=self._std_coef))


def combine(scores: Sequence[float], *, combination: str, std_coef: float) -> float:
    """One score of several weighted ones; see `CombinedScorer`."""
    match combination:
        case "sum":
            return sum(scores)
        case "mean":
            return statistics.fmean(scores)
        case "min":
            return min(scores)
        case "mean_minus_std":
            return statistics.fmean(scores) - std_coef * statistics.pstdev(scores)
        case _:
            raise ValueError(f"combination: {combination!r}; has to be sum, mean, min or mean_minus_std")
