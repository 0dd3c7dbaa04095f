"""What one call gets: a result for each sequence, and what computed it.

Knows nothing of HTTP, models or tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
class Result:
    """The score of one sequence, or why there is none. `num_tokens` counts the whole text, before any truncation."""

    status: Status
    score: float | None
    num_tokens: int
    truncated: bool = False
    detail: str | None = None
    heads: Mapping[str, float] | None = None

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
