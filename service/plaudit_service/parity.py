"""Does what serves give the reference scores? Compares golden texts with what the serving path made of them.

The comparison is pure. `check` calls an in-process scorer; the service makes the same calls through its own queue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plaudit_service.bundle import Bundle, Golden
from plaudit_service.model import Model
from plaudit_service.scorer import Scorer
from plaudit_service.tokenization import TokenizedText, pooled_index
from plaudit_service.wire import Item, Result, check_request


@dataclass(frozen=True)
class ParityRow:
    """One golden text: reference and served raw score, and what may lie between them.

    Attributes:
        reference: raw score of the checkpoint in transformers, float32, alone.
        alone: raw score of the serving path, None where it gave none.
        batched: the same among all other golden texts.
        shared: the same as the continuation of its own first half; None where a sequence cannot be continued.
        allowed: tolerance · max(1, |reference|).
        problem: what is wrong besides the distance, such as other token ids; None where nothing is.
    """

    index: int
    num_tokens: int
    reference: float
    alone: float | None
    batched: float | None
    shared: float | None
    allowed: float
    problem: str | None = None

    @property
    def difference(self) -> float:
        """The largest |served - reference| of alone, batched and shared; infinite where there is no score."""
        if self.alone is None or self.batched is None:
            return float("inf")
        return max(abs(score - self.reference) for score in self._scores)

    @property
    def spread(self) -> float:
        """The distance between the ways to compute it: 0 where they gave the same bits; infinite without a score."""
        if self.alone is None or self.batched is None:
            return float("inf")
        return max(self._scores) - min(self._scores)

    @property
    def _scores(self) -> list[float]:
        return [score for score in (self.alone, self.batched, self.shared) if score is not None]

    @property
    def ok(self) -> bool:
        """Same tokens, and every score within the tolerance."""
        return self.problem is None and self.difference <= self.allowed


@dataclass(frozen=True)
class ParityReport:
    """What the golden texts showed.

    `engine_failures` counts the batches on which the engine raised: halving a batch hides a graph that cannot batch.
    """

    rows: tuple[ParityRow, ...]
    engine_failures: int = 0

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
        """The largest distance between alone, batched and shared."""
        return max(row.spread for row in self.rows)

    @property
    def batch_invariant(self) -> bool:
        """Whether every score was the same, to the bit, alone, batched and continued from a prefix."""
        return self.batch_max_abs_diff == 0

    @property
    def worst(self) -> ParityRow:
        """The row to look at first: a failed one, else the one nearest to its limit."""
        return max(self.rows, key=lambda row: (not row.ok, row.difference / row.allowed))

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


def score_shared(model: Model, texts: Sequence[TokenizedText | Result]) -> list[Result | None]:
    """Score each sequence as the continuation of its own first half; None where that cannot be done."""
    causal = model.bundle.scoring.kind == "causal"
    return [
        model.result(text, model.compute_continued(text, len(text.token_ids) // 2), raw=True)
        if causal and isinstance(text, TokenizedText) and len(text.token_ids) > 1
        else None
        for text in texts
    ]


def compare(
    bundle: Bundle,
    texts: Sequence[TokenizedText | Result],
    *,
    engine_failures: int,
    alone: Sequence[Result],
    batched: Sequence[Result],
    shared: Sequence[Result | None],
) -> ParityReport:
    """Hold the golden texts' sequences and raw results, one per text and in order, against their references."""
    cases = zip(bundle.golden, texts, alone, batched, shared, strict=True)
    rows = tuple(_row(bundle, index, *case) for index, case in enumerate(cases))
    return ParityReport(rows, engine_failures)


def check(scorer: Scorer) -> ParityReport:
    """Score the golden texts one at a time, all at once, and continued from a prefix, and compare."""
    model = scorer.model
    failures_before = model.num_engine_failures
    items = [golden.item for golden in scorer.bundle.golden]
    alone = [scorer.score([item], raw=True)[0] for item in items]
    batched = scorer.score(items, raw=True)
    texts = model.tokenization.tokenize(golden_items(scorer.bundle))
    return compare(
        scorer.bundle,
        texts,
        alone=alone,
        batched=batched,
        shared=score_shared(model, texts),
        engine_failures=model.num_engine_failures - failures_before,
    )


def _row(
    bundle: Bundle,
    index: int,
    golden: Golden,
    text: TokenizedText | Result,
    alone: Result,
    batched: Result,
    shared: Result | None,
) -> ParityRow:
    problem = _token_problem(bundle, golden, text)
    failed = [result for result in (alone, batched, shared) if result is not None and not result.ok]
    if problem is None and failed:
        problem = f"{failed[0].status}: {failed[0].detail}"
    if problem is None:
        problem = _head_problem(bundle, golden, alone)
    return ParityRow(
        index=index,
        num_tokens=len(golden.token_ids),
        reference=golden.score,
        alone=alone.score,
        batched=batched.score,
        shared=None if shared is None else shared.score,
        allowed=bundle.manifest.tolerance * max(1.0, abs(golden.score)),
        problem=problem,
    )


def _head_problem(bundle: Bundle, golden: Golden, alone: Result) -> str | None:
    """Several heads are answered one by one, so each of them has to be right."""
    for (name, served), reference in zip((alone.heads or {}).items(), golden.heads, strict=False):
        allowed = bundle.manifest.tolerance * max(1.0, abs(reference))
        if not abs(served - reference) <= allowed:
            return f"head {name}: |served - reference| = {abs(served - reference):.3g}, limit {allowed:.3g}"
    return None


def _token_problem(bundle: Bundle, golden: Golden, text: TokenizedText | Result) -> str | None:
    if isinstance(text, Result):
        return f"{text.status}: {text.detail}"
    reference = np.array(golden.token_ids, dtype=np.int64)
    if bundle.scoring.kind == "causal":
        reference = reference[: pooled_index(reference, bundle.scoring.pad_token_id) + 1]
    if text.num_tokens == len(golden.token_ids) and np.array_equal(text.token_ids, reference):
        return None
    return f"{text.num_tokens} tokens, the reference has {len(golden.token_ids)}, or other ids; the tokenizer differs"
