"""Every error that the service raises on purpose; the class owns its HTTP status and problem type.

The first paragraph of a problem's docstring is what docs/reference/errors.md says of it.

ServiceError
├── SettingsError            what the user set is wrong                       exit 2
├── BundleError              a bundle is missing, damaged or not allowed      exit 2
│   └── NotExported          it is a checkpoint                               exit 2
├── ExportFailed             a checkpoint was right, but its export failed    exit 1
└── RequestError             one request cannot be answered
    ├── NotJson              400
    ├── EmptyBatch           400  of the dialect tei
    ├── Unauthorized         401
    ├── UnknownModel         404
    ├── BodyTimeout          408
    ├── Mismatch             409  another fingerprint or engine is loaded
    ├── TooLarge             413
    ├── CompressedBody       415
    ├── InvalidRequest       422
    ├── ItemFailed           422  of a dialect, whose answers have no place for a failure
    ├── NotReranker          424  of the dialect tei
    ├── QueueFull            429  Retry-After
    ├── Unavailable          503  Retry-After
    └── AllExpired           504
"""

from typing import ClassVar

# Of a longer text the middle is left out: what and where stand at its beginning, the remedy at its end.
_MAX_START_CHARS, _MAX_END_CHARS = 600, 300


def short_line(text: str) -> str:
    """A text that can be printed on one line: without control characters, and without the middle if it is long."""
    if len(text) > _MAX_START_CHARS + _MAX_END_CHARS:
        text = f"{text[:_MAX_START_CHARS]} ... {text[-_MAX_END_CHARS:]}"
    return "".join(char if char.isprintable() else " " for char in text)


class ServiceError(Exception):
    """Base of all errors of this package; its text is one clear line for the user.

    Texts quote what strangers send or put into a bundle: control characters and what is too long are taken out.
    """

    exit_code: ClassVar[int] = 1  # of a command that it ends

    def __init__(self, text: str) -> None:
        super().__init__(short_line(text))


class SettingsError(ServiceError):
    """A flag or environment variable has a value that cannot be used."""

    exit_code = 2


class BundleError(ServiceError):
    """A bundle is missing, damaged, of another format, or not allowed."""

    exit_code = 2


class NotExported(BundleError):  # noqa: N818  named as what is wrong with the bundle
    """It is a checkpoint, of which there is no bundle yet."""


class ExportFailed(ServiceError):  # noqa: N818
    """The export of a checkpoint failed, though what the user gave was right."""


class RequestError(ServiceError):
    """A request that gets a problem document instead of results (RFC 9457).

    Args:
        detail: One line that says what, where, actual, limit and remedy.
    """

    status: ClassVar[int]
    slug: ClassVar[str]
    title: ClassVar[str]
    retry_after_s: int | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = str(self)

    @property
    def type(self) -> str:
        """The stable problem type, a URN."""
        return f"urn:plaudit:{self.slug}"


class NotJson(RequestError):  # noqa: N818  named as the answer that the client sees
    """The body is not a JSON document."""

    status, slug, title = 400, "not-json", "The body is not JSON"


class EmptyBatch(RequestError):  # noqa: N818
    """Of the dialect tei: there is nothing to score."""

    status, slug, title = 400, "empty-batch", "There is nothing to score"


class Unauthorized(RequestError):  # noqa: N818
    """No API key, or a wrong one."""

    status, slug, title = 401, "unauthorized", "No or wrong API key"


class UnknownModel(RequestError):  # noqa: N818
    """The request names a model that is not loaded."""

    status, slug, title = 404, "unknown-model", "No such model"


class BodyTimeout(RequestError):  # noqa: N818
    """The body did not arrive within --body-timeout-s; the connection is closed after the answer."""

    status, slug, title = 408, "body-timeout", "The body did not arrive in time"


class Mismatch(RequestError):  # noqa: N818
    """The request pins a fingerprint or an engine, and another one is loaded."""

    status, slug, title = 409, "mismatch", "Another fingerprint or engine is loaded"


class TooLarge(RequestError):  # noqa: N818
    """The body, the number of sequences or a text is over a limit, or could never fit the queue."""

    status, slug, title = 413, "too-large", "The request is over a limit"


class CompressedBody(RequestError):  # noqa: N818
    """The body has a Content-Encoding, and a small one could expand to a huge one; send it as plain JSON."""

    status, slug, title = 415, "compressed-body", "The body is compressed"


class InvalidRequest(RequestError):  # noqa: N818
    """The body is JSON of a wrong shape; the detail says where."""

    status, slug, title = 422, "invalid-request", "The request has a wrong shape"


class ItemFailed(RequestError):  # noqa: N818
    """Of a dialect: a sequence has no score, and the dialect's answer has no place for a failure.

    Args:
        detail: Why there is no score.
        by_model: Whether the model failed, and not because of the text.
    """

    status, slug, title = 422, "item-failed", "A sequence has no score"

    def __init__(self, detail: str, *, by_model: bool = False) -> None:
        super().__init__(detail)
        self.by_model = by_model


class NotReranker(RequestError):  # noqa: N818
    """Of the dialect tei, `/rerank`: the model scores no pairs of texts, or has several labels."""

    status, slug, title = 424, "not-reranker", "The model ranks no texts"


class QueueFull(RequestError):  # noqa: N818
    """The queue, or the client's share, has no room now, or the wait would probably outlast X-Request-Timeout-S."""

    status, slug, title = 429, "queue-full", "The queue is full"

    def __init__(self, detail: str, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unavailable(RequestError):  # noqa: N818
    """The service is not ready yet, is draining, or its scores were found wrong."""

    status, slug, title = 503, "unavailable", "The service is not ready"
    retry_after_s = 1


class AllExpired(RequestError):  # noqa: N818
    """Every sequence of the request passed its deadline before it was computed."""

    status, slug, title = 504, "expired", "Every sequence expired"
