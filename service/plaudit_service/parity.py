"""Does what serves give the reference scores? Compares golden texts with what the serving path made of them.

The comparison is pure. `check` calls an in-process scorer; the service makes the same calls through its own queue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plaudit_service.bundle import Bundle, Golden
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
        allowed: tolerance · max(1, |reference|).
        problem: what is wrong besides the distance, such as other token ids; None where nothing is.
    """

    index: int
    num_tokens: int
    reference: float
    alone: float | None
    batched: float | None
    allowed: float
    problem: str | None = None

    @property
    def difference(self) -> float:
        """The larger |served - reference| of alone and batched; infinite where there is no score."""
        served = (self.alone, self.batched)
        return max(float("inf") if score is None else abs(score - self.reference) for score in served)

    @property
    def ok(self) -> bool:
        """Same tokens, and a score within the tolerance both alone and batched."""
        return self.problem is None and self.difference <= self.allowed


@dataclass(frozen=True)
class ParityReport:
    """What the golden texts showed."""

    rows: tuple[ParityRow, ...]

    @property
    def ok(self) -> bool:
        """Whether every golden text got its reference score."""
        return all(row.ok for row in self.rows)

    @property
    def max_abs_diff(self) -> float:
        """The largest |served - reference|."""
        return max(row.difference for row in self.rows)

    @property
    def batch_max_abs_diff(self) -> float:
        """The largest |batched - alone|."""
        pairs = [(row.alone, row.batched) for row in self.rows if row.alone is not None and row.batched is not None]
        return max((abs(alone - batched) for alone, batched in pairs), default=float("inf"))

    @property
    def batch_invariant(self) -> bool:
        """Whether every score was the same, to the bit, alone and batched."""
        return all(row.alone is not None and row.alone == row.batched for row in self.rows)

    @property
    def worst(self) -> ParityRow:
        """The row to look at first: a failed one, else the one nearest to its limit."""
        return max(self.rows, key=lambda row: (not row.ok, row.difference / row.allowed))

    def describe_worst(self) -> str:
        """One line: which text, by how much."""
        row = self.worst
        what = row.problem or f"|served - reference| = {row.difference:.3g}, limit {row.allowed:.3g}"
        return f"golden text {row.index} ({row.num_tokens} tokens): {what}"


def golden_items(bundle: Bundle) -> list[Item]:
    """The golden texts as request items.

    Raises:
        InvalidRequest: a golden text is no item of the wire.
    """
    return check_request({"items": [dict(golden.item) for golden in bundle.golden]}).items


def compare(
    bundle: Bundle, texts: Sequence[TokenizedText | Result], alone: Sequence[Result], batched: Sequence[Result]
) -> ParityReport:
    """Hold the golden texts' sequences and raw results, one per text and in order, against their references."""
    cases = zip(bundle.golden, texts, alone, batched, strict=True)
    return ParityReport(tuple(_row(bundle, index, *case) for index, case in enumerate(cases)))


def check(scorer: Scorer) -> ParityReport:
    """Score the golden texts one at a time and all at once, and compare."""
    items = [golden.item for golden in scorer.bundle.golden]
    alone = [scorer.score([item], raw=True)[0] for item in items]
    texts = scorer.model.tokenization.tokenize(golden_items(scorer.bundle))
    return compare(scorer.bundle, texts, alone, scorer.score(items, raw=True))


def _row(
    bundle: Bundle, index: int, golden: Golden, text: TokenizedText | Result, alone: Result, batched: Result
) -> ParityRow:
    problem = _token_problem(bundle, golden, text)
    if problem is None and not (alone.ok and batched.ok):
        failed = batched if alone.ok else alone
        problem = f"{failed.status}: {failed.detail}"
    return ParityRow(
        index=index,
        num_tokens=len(golden.token_ids),
        reference=golden.score,
        alone=alone.score,
        batched=batched.score,
        allowed=bundle.manifest.tolerance * max(1.0, abs(golden.score)),
        problem=problem,
    )


def _token_problem(bundle: Bundle, golden: Golden, text: TokenizedText | Result) -> str | None:
    if isinstance(text, Result):
        return f"{text.status}: {text.detail}"
    reference = np.array(golden.token_ids, dtype=np.int64)
    if bundle.scoring.kind == "causal":
        reference = reference[: pooled_index(reference, bundle.scoring.pad_token_id) + 1]
    if text.num_tokens == len(golden.token_ids) and np.array_equal(text.token_ids, reference):
        return None
    return f"{text.num_tokens} tokens, the reference has {len(golden.token_ids)}, or other ids; the tokenizer differs"
