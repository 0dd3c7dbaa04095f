"""What one call gets: a result for each sequence, and what computed it.

Knows nothing of HTTP, models or tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from plaudit_service.errors import Mismatch
from plaudit_service.items import ScoreRequest


class Status(StrEnum):
    """What became of one sequence."""

    OK = "ok"
    TOO_LONG = "too_long"
    EMPTY = "empty"
    NON_FINITE = "non_finite"
    EXPIRED = "expired"
    FAILED = "failed"


@dataclass(frozen=True)
class Along:
    """The scores along one text, at some or all of its tokens. All columns have the same length.

    Attributes:
        tokens: index of each token in the whole text, before any truncation.
        scores: score of the text up to and including each token; normalized unless `raw` was requested.
        trained: whether the model was trained to give scores at these tokens.
        ends: end of each token in the text that was scored, in code points; None for an item of token ids.
        messages: index of the message in whose content each token ends, None between messages; None without a chat.
        steps: index of the step that each token ends; None if scores at every token were requested.
    """

    tokens: Sequence[int]
    scores: Sequence[float]
    trained: bool
    ends: Sequence[int] | None = None
    messages: Sequence[int | None] | None = None
    steps: Sequence[int] | None = None


@dataclass(frozen=True)
class Result:
    """The score of one sequence, or why there is none. `num_tokens` counts the whole text, before any truncation.

    If they were requested, `along` has the scores along the text, and `text` is the text that was scored. `index` is
    the sequence's place in the request; two results are compared without it.
    """

    status: Status
    score: float | None
    num_tokens: int
    truncated: bool = False
    detail: str | None = None
    heads: Mapping[str, float] | None = None
    along: Along | None = None
    text: str | None = None
    index: int = field(default=0, compare=False)

    @property
    def ok(self) -> bool:
        """Whether there is a score."""
        return self.status is Status.OK


@dataclass(frozen=True)
class Identity:
    """What computes a score: a model's name, its fingerprint, and its engine."""

    name: str
    fingerprint: str
    engine: str

    def check_pins(self, request: ScoreRequest) -> None:
        """Refuse a request that wants another fingerprint or engine.

        Raises:
            Mismatch: 409.
        """
        for what, wanted, actual in (
            ("fingerprint", request.fingerprint, self.fingerprint),
            ("engine", request.engine, self.engine),
        ):
            if wanted is not None and wanted != actual:
                raise Mismatch(
                    f'the request pins {what} {wanted}, model "{self.name}" has {actual}; another reward '
                    "model is loaded here: use the URL of the pinned one, or remove the pin"
                )
