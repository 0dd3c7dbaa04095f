"""Messages as data sets hold them, made into the client's."""

from collections.abc import Mapping
from typing import Any


def without_empty(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without the fields that are None: a table has every field in every row."""
    return {key: value for key, value in message.items() if value is not None}
