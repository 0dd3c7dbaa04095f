"""The scoring service: loads verified bundles and answers `POST /score`, batched.

`Scorer` is the same path in this process, without HTTP.
"""

from plaudit_service.errors import BundleError, RequestError, ServiceError
from plaudit_service.scorer import Scorer, Scores
from plaudit_service.wire import Result, Status

__all__ = ["BundleError", "RequestError", "Result", "Scorer", "Scores", "ServiceError", "Status"]
