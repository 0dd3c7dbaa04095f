"""Does what serves give the reference scores? Compares golden texts with what the serving path made of them.

The comparison is pure. `check` calls an in-process scorer; the service makes the same calls through its own queue.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from plaudit_service.bundles.bundle import Bundle, Golden, Scoring
from plaudit_service.engine.engine_threads import WHOLE
from plaudit_service.engine.model import HeadsAlong, Model, Outcome, RewardModel
from plaudit_service.items import Item, check_request
from plaudit_service.results import Result
from plaudit_service.serving.scorer import Scorer
from plaudit_service.text.token_ids import Ids
from plaudit_service.text.tokenization import Asked, TokenizedText, pooled_index

# Padded tokens of a call that mixes lengths: large ones show what small ones do not.
MIXED_TOKENS = 4096


@dataclass(frozen=True)
class ParityRow:
    """One golden text: reference and served raw score, and what may lie between them.

    Attributes:
        reference: raw score of the checkpoint in transformers, float32, alone.
        alone: raw score of the serving path, None where it gave none.
        batched: the same where all golden texts wait at once.
        mixed: the same in one call with texts of quite other lengths, so that it is padded.
        shared: the same as the continuation of its own first half; None where a sequence cannot be continued.
        allowed: the bundle's tolerance · max(1, |reference|), or the engine's · standard deviation of the references.
        along: the largest |served - reference| of a head at a token; None where references are of the text alone.
        problem: what is wrong besides the distance, such as other token ids; None where nothing is.
    """

    index: int
    num_tokens: int
    reference: float
    alone: float | None
    batched: float | None
    mixed: float | None
    shared: float | None
    allowed: float
    along: float | None = None
    problem: str | None = None

    @property
    def difference(self) -> float:
        """The largest |served - reference| of all ways to compute it; infinite where there is no score."""
        if self.alone is None or self.batched is None or self.mixed is None:
            return float("inf")
        return max(abs(score - self.reference) for score in self._scores)

    @property
    def spread(self) -> float:
        """The distance between the ways to compute it: 0 where they gave the same bits; infinite without a score."""
        if self.alone is None or self.batched is None or self.mixed is None:
            return float("inf")
        return max(self._scores) - min(self._scores)

    @property
    def _scores(self) -> list[float]:
        return [score for score in (self.alone, self.batched, self.mixed, self.shared) if score is not None]

    @property
    def ok(self) -> bool:
        """Same tokens, and every score within the tolerance."""
        return self.problem is None and self.difference <= self.allowed


@dataclass(frozen=True)
class ParityReport:
    """What the golden texts showed.

    `engine_failures` counts the batches on which the engine raised: halving a batch hides a graph that cannot batch.
    `promises_bits` is what the engine says of itself: golden texts can refute it, but not show it.
    """

    rows: tuple[ParityRow, ...]
    engine_failures: int = 0
    promises_bits: bool = True

    @property
    def ok(self) -> bool:
        """Whether every golden text got its reference score, and the engine took every batch."""
        return self.engine_failures == 0 and all(row.ok for row in self.rows)

    @property
    def max_abs_diff(self) -> float:
        """The largest |served - reference|."""
        return max(row.difference for row in self.rows)

    @property
    def batch_max_abs_diff(self) -> float:
        """The largest distance between alone, batched, mixed and shared."""
        return max(row.spread for row in self.rows)

    @property
    def batch_invariant(self) -> bool:
        """Whether the engine promises it, and every golden text got the same bits in all ways."""
        return self.promises_bits and self.batch_max_abs_diff == 0

    @property
    def worst_first(self) -> list[ParityRow]:
        """The rows as one looks at them: those that failed, then by how near they are to their limits."""
        return sorted(self.rows, key=lambda row: (row.ok, -row.difference / row.allowed))

    @property
    def worst(self) -> ParityRow:
        """The row to look at first."""
        return self.worst_first[0]

    def describe_worst(self) -> str:
        """One line: which text, by how much."""
        row = self.worst
        if row.ok and self.engine_failures:
            return (
                f"the engine raised on {self.engine_failures} batches of golden texts, and scored them one by one only"
            )
        what = row.problem or f"|served - reference| = {row.difference:.3g}, limit {row.allowed:.3g}"
        return f"golden text {row.index} ({row.num_tokens} tokens): {what}"


def golden_items(bundle: Bundle) -> list[Item]:
    """The golden texts as request items.

    Raises:
        InvalidRequest: a golden text is no item of the wire.
    """
    return check_request({"items": [dict(golden.item) for golden in bundle.golden]}).items


def score_shared(model: Model, texts: Sequence[TokenizedText | Result], lane: int = WHOLE) -> list[Result | None]:
    """Score each sequence as the continuation of its own first half; None where that cannot be done."""
    causal = model.bundle.scoring.kind == "causal"
    return [
        model.result(text, model.compute_continued(text, len(text.token_ids) // 2, lane=lane), raw=True)
        if causal and isinstance(text, TokenizedText) and len(text.token_ids) > 1
        else None
        for text in texts
    ]


def score_along(model: Model, item: Item, lane: int = WHOLE) -> Outcome | None:
    """What the heads give at each token of one text; None where the engine has no values there."""
    if model.engine.lacks_along is not None:
        return None
    (text,) = model.tokenization.tokenize([item], Asked(along="tokens"))
    return model.compute([text], lane=lane)[0] if isinstance(text, TokenizedText) else None


def with_references_along(bundle: Bundle) -> list[tuple[int, Item]]:
    """Place and item of each golden text that has references at its tokens."""
    items = golden_items(bundle)
    return [(place, items[place]) for place, golden in enumerate(bundle.golden) if golden.along is not None]


def mixed_batches(texts: Sequence[TokenizedText | Result], *, max_padded_tokens: int = MIXED_TOKENS) -> list[list[int]]:
    """Places of texts for calls that mix the longest with the shortest, which no scheduler would choose."""
    places = [place for place, text in enumerate(texts) if isinstance(text, TokenizedText)]
    order = sorted(places, key=lambda place: -_num_tokens(texts[place]))
    mixed = [place for pair in zip(order, reversed(order), strict=True) for place in pair][: len(order)]
    batches: list[list[int]] = []
    for place in mixed:
        longest = max(_num_tokens(texts[at]) for at in [place, *(batches[-1] if batches else [])])
        if batches and (len(batches[-1]) + 1) * longest <= max_padded_tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def score_mixed(
    model: Model, texts: Sequence[TokenizedText | Result], batches: Sequence[Sequence[int]], lane: int = WHOLE
) -> dict[int, Result]:
    """Score texts in calls of just these batches; by place."""
    results: dict[int, Result] = {place: text for place, text in enumerate(texts) if isinstance(text, Result)}
    for batch in batches:
        sequences = [text for place in batch if isinstance(text := texts[place], TokenizedText)]
        for place, text, outcome in zip(batch, sequences, model.compute(sequences, lane=lane), strict=True):
            results[place] = model.result(text, outcome, raw=True)
    return results


def _num_tokens(text: TokenizedText | Result) -> int:
    return len(text.token_ids) if isinstance(text, TokenizedText) else 0


def compare(
    model: RewardModel,
    texts: Sequence[TokenizedText | Result],
    *,
    engine_failures: int,
    alone: Sequence[Result],
    batched: Sequence[Result],
    mixed: Mapping[int, Result],
    shared: Sequence[Result | None],
    along: Mapping[int, Outcome | None],
) -> ParityReport:
    """Hold the golden texts' sequences and raw results, one per text and in order, against their references.

    `along` has what the heads gave at the tokens, by place, of the texts that have references there.
    """
    bundle = model.bundle
    scores = _Allowed(bundle.manifest.tolerance, model.engine.tolerance, [golden.score for golden in bundle.golden])
    heads = [
        _Allowed(bundle.manifest.tolerance, model.engine.tolerance, references)
        for references in zip(*(golden.heads for golden in bundle.golden), strict=True)
    ]
    cases = zip(
        bundle.golden, texts, alone, batched, [mixed[place] for place in range(len(texts))], shared, strict=True
    )
    rows = tuple(
        _with_along(_row(bundle, scores, heads, index, *case), bundle, heads, along.get(index))
        for index, case in enumerate(cases)
    )
    return ParityReport(rows, engine_failures, model.engine.promises_bits)


def check(scorer: Scorer) -> ParityReport:
    """Score the golden texts one at a time, all at once, and continued from a prefix, and compare."""
    model = scorer.model
    failures_before = model.num_engine_failures
    items = [golden.item for golden in scorer.bundle.golden]
    alone = [scorer.score([item], raw=True)[0] for item in items]
    batched = scorer.score(items, raw=True)
    texts = model.tokenization.tokenize(golden_items(scorer.bundle))
    return compare(
        model,
        texts,
        alone=alone,
        batched=batched,
        mixed=score_mixed(model, texts, mixed_batches(texts)),
        shared=score_shared(model, texts),
        along={place: score_along(model, item) for place, item in with_references_along(scorer.bundle)},
        engine_failures=model.num_engine_failures - failures_before,
    )


class GoldenCheck:
    """One golden text after the other, for a service that has passed its check and is to be asked now and then.

    Args:
        model: Whose golden texts they are.
    """

    def __init__(self, model: RewardModel) -> None:
        self._golden = model.bundle.golden
        self._items = golden_items(model.bundle)
        references = [golden.score for golden in self._golden]
        self._allowed = _Allowed(model.bundle.manifest.tolerance, model.engine.tolerance, references)
        self._place = -1

    def next_item(self) -> Item:
        """The next one, which `problem` is about from now on."""
        self._place = (self._place + 1) % len(self._items)
        return self._items[self._place]

    def problem(self, result: Result) -> str | None:
        """What is wrong with its raw result; None: nothing."""
        reference = self._golden[self._place].score
        allowed = self._allowed.around(reference)
        if result.score is None:
            return f"golden text {self._place}: {result.status}: {result.detail}"
        difference = abs(result.score - reference)
        if difference <= allowed:
            return None
        return f"golden text {self._place}: |served - reference| = {difference:.3g} now, limit {allowed:.3g}"


def _row(
    bundle: Bundle,
    scores: "_Allowed",
    heads: Sequence["_Allowed"],
    index: int,
    golden: Golden,
    text: TokenizedText | Result,
    alone: Result,
    batched: Result,
    mixed: Result,
    shared: Result | None,
) -> ParityRow:
    problem = token_problem(bundle, golden, text)
    failed = [result for result in (alone, batched, mixed, shared) if result is not None and not result.ok]
    if problem is None and failed:
        problem = f"{failed[0].status}: {failed[0].detail}"
    if problem is None:
        problem = _head_problem(heads, golden, alone)
    return ParityRow(
        index=index,
        num_tokens=len(golden.token_ids),
        reference=golden.score,
        alone=alone.score,
        batched=batched.score,
        mixed=mixed.score,
        shared=None if shared is None else shared.score,
        allowed=scores.around(golden.score),
        problem=problem,
    )


def _with_along(row: ParityRow, bundle: Bundle, heads: Sequence["_Allowed"], served: Outcome | None) -> ParityRow:
    """The row with the distance of the heads at the tokens, and what is wrong there."""
    reference = bundle.golden[row.index].along
    if reference is None or served is None or row.problem is not None:
        return row
    if not isinstance(served, HeadsAlong) or len(served.tokens) != len(reference):
        return replace(row, problem="there is no value for each of its tokens")
    differences = np.abs(served.tokens.astype(np.float64) - np.array(reference))
    allowed = np.array([[head.around(value) for head, value in zip(heads, token, strict=True)] for token in reference])
    token, head = np.unravel_index((differences / allowed).argmax(), differences.shape)
    worst = differences[token, head]
    problem = None
    if not worst <= allowed[token, head]:
        name = bundle.scoring.heads[head].name
        problem = f"head {name} at token {token}: |served - reference| = {worst:.3g}, limit {allowed[token, head]:.3g}"
    return replace(row, along=float(differences.max()), problem=problem)


def _head_problem(heads: Sequence["_Allowed"], golden: Golden, alone: Result) -> str | None:
    """Several heads are answered one by one, so each of them has to be right."""
    for head, (name, served), reference in zip(heads, (alone.heads or {}).items(), golden.heads, strict=False):
        allowed = head.around(reference)
        if not abs(served - reference) <= allowed:
            return f"head {name}: |served - reference| = {abs(served - reference):.3g}, limit {allowed:.3g}"
    return None


class _Allowed:
    """How far a served value may be from its reference."""

    def __init__(self, bundle_tolerance: float, engine_tolerance: float, references: Sequence[float]) -> None:
        self._relative = bundle_tolerance
        self._absolute = engine_tolerance * statistics.pstdev(references)

    def around(self, reference: float) -> float:
        """The limit of |served - reference|."""
        return max(self._relative * max(1.0, abs(reference)), self._absolute)


def _pooled(ids: Ids, scoring: Scoring) -> int:
    return pooled_index(ids, scoring.pad_token_id, scoring.pooled_before, scoring.step_token_id)


def token_problem(bundle: Bundle, golden: Golden, text: TokenizedText | Result) -> str | None:
    """What is wrong with the tokens that the serving path made of a golden text; None: nothing."""
    if isinstance(text, Result):
        return f"{text.status}: {text.detail}"
    reference = np.array(golden.token_ids, dtype=np.int64)
    scoring = bundle.scoring
    if scoring.kind == "causal":
        reference = reference[: _pooled(reference, scoring) + 1]
    if text.num_tokens == len(golden.token_ids) and np.array_equal(text.token_ids, reference):
        return None
    return f"{text.num_tokens} tokens, the reference has {len(golden.token_ids)}, or other ids; the tokenizer differs"
