"""What a client is set up with: arguments first, PLAUDIT_URL, PLAUDIT_API_KEY and _KEYS where there is none."""

import math
import os
from collections.abc import Sequence
from urllib.parse import urlsplit

from plaudit_client.errors import InvalidArgument

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_CONCURRENCY = 8


def resolve_urls(url: str | Sequence[str] | None) -> tuple[str, ...]:
    """The base URLs of the service's replicas, without a slash at the end.

    Args:
        url: One URL, several separated by commas, or a sequence of URLs; None for PLAUDIT_URL.

    Raises:
        InvalidArgument: There is none, or one cannot be used.
    """
    given = url if url is not None else os.environ.get("PLAUDIT_URL", "")
    parts = given.split(",") if isinstance(given, str) else given
    if not (isinstance(parts, Sequence) and all(isinstance(part, str) for part in parts)):
        raise InvalidArgument(f"url: got {type(given).__name__}; give a str or a sequence of str")
    urls = tuple(_check_url(part.strip()) for part in parts if part.strip())
    if not urls:
        raise InvalidArgument("url: none given; pass one such as http://127.0.0.1:8000, or set PLAUDIT_URL")
    return urls


def _check_url(text: str) -> str:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise InvalidArgument(f"url {text!r}: {error}; give one such as http://127.0.0.1:8000") from error
    if "@" in url.netloc:  # not shown in the message, because messages end up in logs
        raise InvalidArgument("url: contains a user name or password; give the API key as api_key or PLAUDIT_API_KEY")
    is_base = url.scheme in {"http", "https"} and url.hostname and not (url.query or url.fragment) and port != 0
    if not is_base or not text.isprintable() or " " in text:
        raise InvalidArgument(f"url {text!r}: is not the base URL of a service; give one such as http://127.0.0.1:8000")
    return text.rstrip("/")


def resolve_headers(api_key: str | None) -> dict[str, str]:
    """The headers of every request.

    Args:
        api_key: None for PLAUDIT_API_KEY, else the first of PLAUDIT_API_KEYS, which a service takes all of; no key
            where neither is set.

    Raises:
        InvalidArgument: The key cannot stand in a header.
    """
    # The answer's size is checked while it is read, and a compressed one could hide a huge one.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "plaudit-client"}
    given = _key_of_environment() if api_key is None else api_key
    if not isinstance(given, str):
        raise InvalidArgument(f"api_key: got {type(given).__name__}; give a str")
    key = given.strip()
    if not (key.isascii() and key.isprintable()):
        raise InvalidArgument(
            "api_key: contains characters that are not allowed in an HTTP header; give printable ASCII"
        )
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _key_of_environment() -> str:
    keys = [os.environ.get("PLAUDIT_API_KEY", ""), *os.environ.get("PLAUDIT_API_KEYS", "").split(",")]
    return next((key for key in keys if key.strip()), "")


def check_positive(name: str, value: float) -> None:
    """Refuse a limit or a number of seconds that is not positive and finite.

    Raises:
        InvalidArgument: It is not.
    """
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise InvalidArgument(f"{name}: got {value!r}; give a number above 0")
