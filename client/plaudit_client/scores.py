"""What a call to `score` returns: one `Score` per sequence, in the caller's order.

Knows nothing of HTTP or JSON.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

Status = Literal["ok", "too_long", "empty", "non_finite", "expired", "failed"]


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one sequence, or why there is none.

    Attributes:
        status: `ok`, or why there is no score.
        score: The score; None unless `ok`.
        num_tokens: Length of the whole text in tokens, before any truncation; None where it is not known.
        truncated: Whether the text was cut before it was scored.
        detail: What the service says about a failure.
        heads: The raw value of each head, where the reward model has several.
    """

    status: Status
    score: float | None
    num_tokens: int | None = None
    truncated: bool = False
    detail: str | None = None
    heads: dict[str, float] | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a score."""
        return self.status == "ok"


@dataclass(frozen=True, slots=True)
class Scores(Sequence[Score]):
    """The scores of one call, flattened: an item with n completions gives n of them, in place.

    Attributes:
        results: One per sequence.
        model: The model that answered; None only when nothing was asked (no items).
        fingerprint: Its fingerprint, likewise.
        engine: What computed the scores, likewise.
    """

    results: tuple[Score, ...]
    model: str | None = None
    fingerprint: str | None = None
    engine: str | None = None

    @property
    def floats(self) -> list[float]:
        """One number per sequence, NaN where there is no score: mask those, never train on them."""
        return [math.nan if result.score is None else result.score for result in self.results]

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, index: int) -> Score: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Score, ...]: ...
    def __getitem__(self, index: int | slice) -> Score | tuple[Score, ...]:
        return self.results[index]
