"""A loaded reward model: sequences to raw head values to results, with every failure kept to its own sequence.

Knows nothing of queues or HTTP.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plaudit_service.bundles.bundle import Bundle
from plaudit_service.engine.engine_threads import WHOLE
from plaudit_service.engine.engines import Engine, Prefix, Traits, padded_tokens
from plaudit_service.engine.links import linked
from plaudit_service.engine.prefixes import PrefixCache
from plaudit_service.errors import InvalidRequest
from plaudit_service.items import ScoreRequest
from plaudit_service.results import Along, Identity, Result, Status
from plaudit_service.text.places import Places
from plaudit_service.text.token_ids import Ids, token_key
from plaudit_service.text.tokenization import Tokenization, TokenizedText


@dataclass(frozen=True)
class Failure:
    """Why a sequence has no score."""

    status: Status
    detail: str


@dataclass(frozen=True, eq=False)
class HeadsAlong:
    """The raw value of each head, and of each at every token that was computed, shape (T, heads)."""

    heads: tuple[float, ...]
    tokens: npt.NDArray[np.float32]


# The raw value of each head, or why there are none; of a sequence with places, at its tokens, too.
Outcome = tuple[float, ...] | HeadsAlong | Failure


_OUT_OF_MEMORY = re.compile(r"out of memory|failed to allocate|bad_alloc|bad allocation", re.IGNORECASE)


class RewardModel:
    """A bundle's sequences and results, whatever computes the values of its heads.

    Args:
        bundle: A verified bundle.
        engine: What computes them.

    Attributes:
        max_batch_tokens: Padded tokens of one call that fit into the memory of the device, as far as calls have shown.
    """

    engine: Traits

    def __init__(self, bundle: Bundle, engine: Traits) -> None:
        self.bundle = bundle
        self.engine = engine
        self.tokenization = Tokenization(bundle)
        self.max_batch_tokens: float = float("inf")

    @property
    def identity(self) -> Identity:
        """What answers name and requests may pin."""
        return Identity(self.bundle.name, self.bundle.fingerprint, self.engine.name)

    @property
    def num_engine_failures(self) -> int:
        """Batches on which the engine raised."""
        return 0

    @property
    def longest_kept(self) -> Callable[[bytes], int] | None:
        """What tells a backlog which prefixes are kept; None: sequences share nothing here."""
        return None

    def result(self, text: TokenizedText, outcome: Outcome, *, raw: bool) -> Result:
        """Weigh, link and normalize: score = (link(sum of weight x head) - mean) / std, in float64; at tokens, too."""
        if isinstance(outcome, Failure):
            return self._failed(text, outcome)
        values = outcome.heads if isinstance(outcome, HeadsAlong) else outcome
        score = self._score(values, raw=raw)
        if not np.isfinite(score):
            return self._failed(text, Failure(Status.NON_FINITE, "the weighted score is not finite"))
        along = None
        if text.places is not None:
            assert isinstance(outcome, HeadsAlong)
            with np.errstate(all="ignore"):  # what is not finite is a failure below
                scores = self._score(outcome.tokens[text.places.rows].astype(np.float64).T, raw=raw)
            if not np.isfinite(scores).all():
                return self._failed(text, Failure(Status.NON_FINITE, "the score of a token is not finite"))
            along = _along(text.places, scores, trained=self._is_trained_at(text.places))
        names = [head.name for head in self.bundle.scoring.heads]
        heads = dict(zip(names, values, strict=True)) if len(values) > 1 else None
        return Result(
            Status.OK,
            float(score),
            text.num_tokens,
            text.truncated,
            heads=heads,
            along=along,
            text=text.text,
            index=text.index,
        )

    def _score(self, heads: Iterable[Any], *, raw: bool) -> Any:
        """The weighted, linked and normalized heads, each a number or an array of them."""
        scoring = self.bundle.scoring
        score = 0.0
        for head, value in zip(scoring.heads, heads, strict=True):  # `sum` rounds otherwise from Python 3.12 on
            score += head.weight * value
        score = linked(score, scoring.link)
        if scoring.normalization is not None and not raw:
            score = (score - scoring.normalization.mean) / scoring.normalization.std
        return score

    def _is_trained_at(self, places: Places) -> bool:
        """Whether the model was trained to give a number at these tokens."""
        trained_at = self.bundle.manifest.trained_at
        return trained_at == "tokens" or (trained_at == "steps" and places.steps is not None)

    def _failed(self, text: TokenizedText, failure: Failure) -> Result:
        detail = failure.detail
        return Result(failure.status, None, text.num_tokens, text.truncated, detail, text=text.text, index=text.index)

    def check_request(self, request: ScoreRequest) -> None:
        """Refuse a request that asks for what this model does not have.

        Raises:
            InvalidRequest: 422.
        """
        if request.along != "none" and (why := self.engine.lacks_along) is not None:
            raise InvalidRequest(f'along: model "{self.bundle.name}" has no values along a text: {why}')
        if request.explain and self.bundle.scoring.pair:
            raise InvalidRequest(
                f'explain: model "{self.bundle.name}" was trained on pairs, and scores prompt and completion as they '
                "are sent; leave explain out"
            )

    def results(
        self, texts: Sequence[TokenizedText | Result], outcomes: Mapping[int, Outcome], *, raw: bool
    ) -> list[Result]:
        """The results of a request, in order: those that stand already, and those of the outcomes, by index."""
        return [
            text if isinstance(text, Result) else self.result(text, outcomes[text.index], raw=raw) for text in texts
        ]


class Model(RewardModel):
    """One whose graph runs in this process.

    Calls at once are on different lanes: 0 is the whole device, from 1 on are shares of it.

    Args:
        bundle: A verified bundle.
        engine: What runs its graph on the whole device.
        prefixes: Where computed prefixes are kept; None: every sequence is computed whole.
        shares: What runs it on a share of the device, for each lane from 1 on.
    """

    engine: Engine

    def __init__(
        self, bundle: Bundle, engine: Engine, prefixes: PrefixCache | None = None, shares: Sequence[Engine] = ()
    ) -> None:
        super().__init__(bundle, engine)
        self._shares = tuple(shares)
        self.prefixes = prefixes if bundle.scoring.kind == "causal" else None
        # By lane: each is counted by one thread at a time.
        self._num_failures = [0] * (1 + len(self._shares))
        self._num_prefix_tokens = [0] * (1 + len(self._shares))

    @property
    def num_engine_failures(self) -> int:
        """Batches on which the engine raised."""
        return sum(self._num_failures)

    def num_computed_prefix_tokens(self, lane: int | None = None) -> int:
        """Tokens of prefixes that were computed, on one lane or on all."""
        return sum(self._num_prefix_tokens) if lane is None else self._num_prefix_tokens[lane]

    @property
    def longest_kept(self) -> Callable[[bytes], int] | None:
        """What tells a backlog which prefixes are kept; None: sequences share nothing."""
        return None if self.prefixes is None else self.prefixes.longest

    def compute(
        self, batch: Sequence[TokenizedText], num_prefix_tokens: int = 0, *, lane: int = WHOLE
    ) -> list[Outcome]:
        """Run the engine on a batch; where it raises, halve the batch until the culprit is alone.

        A sequence without a finite score is computed once more, alone: no mate may be the reason.

        Args:
            batch: Sequences, all longer than the prefix.
            num_prefix_tokens: How many first tokens they have in common, to be computed once.
            lane: Where it is computed; no other call may be on it.
        """
        if not batch:
            return []
        try:
            along = any(text.places is not None for text in batch)
            ids = batch[0].token_ids[:num_prefix_tokens]
            prefix = self._prefix(ids, lane, along=along) if num_prefix_tokens else None
            outcomes = self._run(self._engine_of(lane), batch, prefix, along=along)
        except Exception as error:  # noqa: BLE001  whatever one sequence makes an engine raise, its mates get their scores
            self._num_failures[lane] += 1
            if num_prefix_tokens:
                return self.compute(batch, lane=lane)
            if len(batch) == 1:
                return [_engine_failure(error)]
            if _OUT_OF_MEMORY.search(str(error)) or isinstance(error, MemoryError):
                self.max_batch_tokens = padded_tokens([len(text.token_ids) for text in batch], self.engine.costs) // 2
            half = len(batch) // 2
            return self.compute(batch[:half], lane=lane) + self.compute(batch[half:], lane=lane)
        if len(batch) == 1 and num_prefix_tokens == 0:
            return outcomes
        return [
            self.compute([text], lane=lane)[0] if isinstance(outcome, Failure) else outcome
            for text, outcome in zip(batch, outcomes, strict=True)
        ]

    def _run(
        self, engine: Engine, batch: Sequence[TokenizedText], prefix: Prefix | None, *, along: bool
    ) -> list[Outcome]:
        """What the engine gives for each sequence; a failure where that is no finite number."""
        if not along:
            return [outcome_of(row) for row in engine.run(batch, prefix).astype(np.float64)]
        heads, tokens = engine.run_along(batch, prefix)
        return [
            outcome if text.places is None or isinstance(outcome, Failure) else HeadsAlong(outcome, values)
            for text, outcome, values in zip(batch, map(outcome_of, heads.astype(np.float64)), tokens, strict=True)
        ]

    def _engine_of(self, lane: int) -> Engine:
        return self.engine if lane == WHOLE else self._shares[lane - 1]

    def _prefix(self, token_ids: Ids, lane: int, *, along: bool) -> Prefix:
        """The computed prefix, kept from before, or continued from what is kept of its beginning.

        One that is kept without values along its tokens is computed anew for who asks for them.
        """
        prefixes, key = self.prefixes, token_key(token_ids)
        assert prefixes is not None

        def compute() -> Prefix:
            base = prefixes.get(token_key(token_ids[: prefixes.longest(key)]))
            if along and base is not None and base.along is None:
                base = None
            prefix = self._engine_of(lane).compute_prefix(token_ids, base, along=along)
            self._num_prefix_tokens[lane] += len(token_ids) - (base.num_tokens if base else 0)
            return prefix

        prefix = prefixes.get_or_compute(key, compute)
        if along and prefix.along is None:
            prefix = compute()
            prefixes.put(key, prefix)
        return prefix

    def compute_continued(self, text: TokenizedText, num_prefix_tokens: int, *, lane: int = WHOLE) -> Outcome:
        """Compute a sequence of a causal model as the continuation of its own first tokens."""
        engine = self._engine_of(lane)
        try:
            along = text.places is not None
            prefix = engine.compute_prefix(text.token_ids[:num_prefix_tokens], along=along)
            (outcome,) = self._run(engine, [text], prefix, along=along)
        except Exception as error:  # noqa: BLE001  as in compute
            return _engine_failure(error)
        return outcome


def _engine_failure(error: Exception) -> Failure:
    return Failure(Status.FAILED, f"the engine failed: {type(error).__name__}")


def _along(places: Places, scores: npt.NDArray[np.float64], *, trained: bool) -> Along:
    ends, messages, steps = places.ends, places.messages, places.steps
    return Along(
        places.tokens.tolist(),
        scores.tolist(),
        trained=trained,
        ends=None if ends is None else ends.tolist(),
        messages=None if messages is None else [None if number < 0 else number for number in messages.tolist()],
        steps=None if steps is None else steps.tolist(),
    )


def outcome_of(heads: npt.NDArray[np.float64]) -> tuple[float, ...] | Failure:
    """The raw values of one sequence's heads, as they are or as a failure."""
    if np.isfinite(heads).all():
        return tuple(heads.tolist())
    return Failure(Status.NON_FINITE, "the model's score is not a finite number")
