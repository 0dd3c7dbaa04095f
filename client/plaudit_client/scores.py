"""What a call to `score` returns: one `Score` per sequence, in the caller's order.

Knows nothing of HTTP or JSON.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from plaudit_client.errors import InvalidArgument

Status = Literal["ok", "too_long", "empty", "non_finite", "expired", "failed"]


@dataclass(frozen=True, slots=True)
class Along:
    """What the reward model gives at tokens of one text: columns of one length.

    Attributes:
        tokens: Number of each token among those of the whole text, before any truncation.
        scores: Of the text up to and with this token.
        trained: Whether the model was trained to give a number at these tokens; else they mean nothing by themselves.
        ends: Where each token ends in the text that was scored, in code points; None for an item of token ids.
        messages: Number of the message whose content each token ends in, None between two; None without a chat.
        steps: Number of the step that each token ends; None where every token was asked for.
    """

    tokens: tuple[int, ...]
    scores: tuple[float, ...]
    trained: bool
    ends: tuple[int, ...] | None = None
    messages: tuple[int | None, ...] | None = None
    steps: tuple[int, ...] | None = None


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
        along: What the reward model gives along the text, where that was asked for.
        text: What was scored, where that was asked for.
    """

    status: Status
    score: float | None
    num_tokens: int | None = None
    truncated: bool = False
    detail: str | None = None
    heads: dict[str, float] | None = None
    along: Along | None = None
    text: str | None = None

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


@dataclass(frozen=True, slots=True)
class Best:
    """The completion of a group with the highest score.

    Attributes:
        completion: Its text.
        index: Its place in the group's completions.
        score: Its score.
    """

    completion: str
    index: int
    score: float


def best_of(items: Sequence[Mapping[str, Any]], scores: Sequence[Score]) -> list[Best | None]:
    """The best completion of each item, for rejection sampling (best-of-n): the first one with the highest score.

    Args:
        items: As they were scored, all with `completions`.
        scores: Of all their completions, as `score` returns them.

    Returns:
        One per item; None where no completion has a score.

    Raises:
        InvalidArgument: An item has no completions, or there is not one score for each.
    """
    bests: list[Best | None] = []
    start = 0
    for index, item in enumerate(items):
        if not (isinstance(item, Mapping) and item.get("completions")):
            raise InvalidArgument(f"items[{index}]: no completions to choose from; give a list of completions")
        completions = item["completions"]
        group = scores[start : start + len(completions)]
        start += len(completions)
        scored = [(score.score, -place) for place, score in enumerate(group) if score.score is not None]
        if not scored:
            bests.append(None)
            continue
        value, place = max(scored)
        bests.append(Best(completions[-place], -place, value))
    if start != len(scores):
        raise InvalidArgument(f"scores: got {len(scores)} for {start} completions; give the scores of these items")
    return bests
