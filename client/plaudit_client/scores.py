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
    """The scores along one text, at some or all of its tokens. All columns have the same length.

    Attributes:
        tokens: Index of each token in the whole text, before any truncation.
        scores: Score of the text up to and including each token.
        trained: Whether the model was trained to give scores at these tokens. Without that, they have no meaning alone.
        ends: End of each token in the text that was scored, in code points; None for an item of token ids.
        messages: Index of the message in whose content each token ends, None between messages; None without a chat.
        steps: Index of the step that each token ends; None if scores at every token were requested.
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
        num_tokens: Length of the whole text in tokens, before any truncation; None if it is not known.
        truncated: Whether the text was cut before it was scored.
        detail: The service's description of a failure.
        heads: The raw value of each head, if the reward model has several heads.
        along: The scores along the text, if `along` was requested.
        text: The text that was scored, if `explain` was requested.
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
        model: Name of the model that answered; None if there were no items.
        fingerprint: Fingerprint of that model; None if there were no items.
        engine: Name of the engine that computed the scores; None if there were no items.
    """

    results: tuple[Score, ...]
    model: str | None = None
    fingerprint: str | None = None
    engine: str | None = None

    @property
    def floats(self) -> list[float]:
        """One number per sequence, NaN for a sequence without a score. Mask NaN, and never train on it."""
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
        items: The items that were scored, all with `completions`.
        scores: The scores of all their completions, as `score` returns them.

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
