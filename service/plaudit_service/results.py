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
    """What the model gives at tokens of one text: columns of one length.

    Attributes:
        tokens: number of each token among those of the whole text, before any truncation.
        scores: of the text up to and with this token; as the score, normalized unless `raw` was asked for.
        trained: whether the model was trained to give a number at these tokens.
        ends: where each token ends in the text that was scored, in code points; None where the caller gave ids.
        messages: the number of the message whose content each token ends in, None between two; None without a chat.
        steps: the number of the step that each token ends; None where every token was asked for.
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

    Where they were asked for: `along` has what the model gives along the text, `text` is what was scored. `index` says
    which of the request's sequences it is; it was given when the request was read, and is no part of what is compared.
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
                    f'the request pins {what} {wanted}, model "{self.name}" has {actual}; '
                    f"another reward model is loaded here: use its own URL, or drop the pin"
                )
