"""The client SDK: sends items to a scoring service and returns a score or a typed failure for each."""

from plaudit_client.client import AsyncRewardClient, RewardClient
from plaudit_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    FingerprintChanged,
    FingerprintMismatch,
    InvalidAnswer,
    InvalidArgument,
    InvalidRequest,
    PlauditError,
    RequestRejected,
    RequestTooLarge,
    ServiceUnavailable,
    Unauthorized,
    UnknownModel,
)
from plaudit_client.items import Item, ItemLike, Message
from plaudit_client.protocol import Truncation
from plaudit_client.scores import Along, Best, Score, Scores, Status, best_of

__all__ = [
    "Along",
    "AsyncRewardClient",
    "Best",
    "ConnectionFailed",
    "DeadlineExceeded",
    "FingerprintChanged",
    "FingerprintMismatch",
    "InvalidAnswer",
    "InvalidArgument",
    "InvalidRequest",
    "Item",
    "ItemLike",
    "Message",
    "PlauditError",
    "RequestRejected",
    "RequestTooLarge",
    "RewardClient",
    "Score",
    "Scores",
    "ServiceUnavailable",
    "Status",
    "Truncation",
    "Unauthorized",
    "UnknownModel",
    "best_of",
]
