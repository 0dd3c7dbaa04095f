"""Every error that the client raises on purpose. A failure never becomes a number.

The tree::

    PlauditError
    ├── InvalidArgument          an argument is wrong; nothing was sent (also a ValueError)
    ├── ConnectionFailed         no answer came: refused, reset, silent                 retried
    ├── ServiceUnavailable       429, 500, 502, 503, 504                                retried
    ├── DeadlineExceeded         the deadline of the call passed before an answer came
    ├── RequestRejected          any other status than 200; a retry would get the same answer
    │   ├── Unauthorized         401
    │   ├── UnknownModel         404
    │   ├── FingerprintMismatch  409  the service has another fingerprint or engine than the pinned one
    │   ├── RequestTooLarge      413
    │   └── InvalidRequest       422
    └── InvalidAnswer            status 200, but the answer is not a valid set of scores
        └── FingerprintChanged   the answer was computed by another reward model or engine than the pinned one

An error that was retried is raised only after the last attempt; `attempts` says how many there were.
"""
# ruff: noqa: N818  the names say what happened; all of them end a sentence that begins with "PlauditError:"

from typing import ClassVar


class PlauditError(Exception):
    """Base of all errors of this package; its text is one clear line.

    Attributes:
        exit_code: Exit code of a command that ends with this error: 2 for a wrong option or input, else 1.
        attempts: How many times the request was sent before this error was raised.
        is_budget_spent: Whether the request was not sent again because the client's retry budget is spent.
    """

    exit_code: ClassVar[int] = 1
    attempts: int = 1
    is_budget_spent: bool = False

    def __str__(self) -> str:
        text = super().__str__()
        notes = [f"after {self.attempts} attempts"] if self.attempts > 1 else []
        notes += ["no more retries: the client's retry budget is spent"] if self.is_budget_spent else []
        return f"{text} ({'; '.join(notes)})" if notes else text


class InvalidArgument(PlauditError, ValueError):
    """An argument is wrong; nothing was sent."""

    exit_code = 2


class ConnectionFailed(PlauditError):
    """The service could not be reached, or the connection broke before the whole answer had arrived.

    Attributes:
        connected: Whether a connection was made, so that the service may have received the request.
    """

    def __init__(self, message: str, *, connected: bool = True) -> None:
        super().__init__(message)
        self.connected = connected


class DeadlineExceeded(PlauditError):
    """The total deadline of the call passed; the message has the last failure."""


class ServiceUnavailable(PlauditError):
    """The service cannot answer now: overloaded, draining, not ready, or an error inside it.

    Attributes:
        status: The HTTP status.
        retry_after_s: Seconds from the service's Retry-After header; None without a usable one.
    """

    def __init__(self, message: str, *, status: int = 503, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class RequestRejected(PlauditError):
    """The service refused the request, and would refuse it again; 415: a proxy on the way has compressed the body.

    Attributes:
        status: The HTTP status.
        problem_type: The `type` of the problem document (RFC 9457), which stays stable; None without a document.
        detail: The `detail` of the problem document; None without one.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, status: int = 400, problem_type: str | None = None, detail: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem_type = problem_type
        self.detail = detail


class Unauthorized(RequestRejected):
    """401: no API key, or a wrong one."""


class UnknownModel(RequestRejected):
    """404: no model of that name, or the URL is not that of a scoring service."""


class FingerprintMismatch(RequestRejected):
    """409: the service has another fingerprint or engine loaded than the request asked for."""

    exit_code = 1


class RequestTooLarge(RequestRejected):
    """413: more bytes or sequences than the service takes in one request."""


class InvalidRequest(RequestRejected):
    """422: an item or option has a wrong shape."""


class InvalidAnswer(PlauditError):
    """The answer has status 200 but is not a full, consistent set of results."""


class FingerprintChanged(InvalidAnswer):
    """The answer's fingerprint or engine differs from the pinned one, so its scores cannot be compared."""
