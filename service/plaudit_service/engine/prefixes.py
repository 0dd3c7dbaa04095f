"""The computed prefixes that are kept for sequences to come: the latest used, bounded in bytes and number.

Used by the engine's threads, and asked by the event loop's which prefixes there are.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from plaudit_service.engine.engines import Prefix

# The event loop looks a sequence up once for each length that is kept.
_MAX_KEPT = 64
_BYTES_PER_TOKEN = 4  # of a key: `token_ids.token_key`


class PrefixCache:
    """Computed prefixes by the bytes of their token ids.

    Args:
        max_bytes: Limit of all kept prefixes together; the latest one is kept whatever its size, because it is in use.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._prefixes: OrderedDict[bytes, Prefix] = OrderedDict()
        self._num_bytes = 0
        self._computing: dict[bytes, Future[Prefix]] = {}

    def longest(self, key: bytes) -> int:
        """Number of first tokens of a sequence whose computation is kept; 0 where there is none."""
        with self._lock:
            lengths = {len(kept) for kept in self._prefixes if len(kept) < len(key)}
            return next((n // _BYTES_PER_TOKEN for n in sorted(lengths, reverse=True) if key[:n] in self._prefixes), 0)

    def get(self, key: bytes) -> Prefix | None:
        """The prefix of exactly these tokens, now the latest used."""
        with self._lock:
            if key in self._prefixes:
                self._prefixes.move_to_end(key)
            return self._prefixes.get(key)

    def get_or_compute(self, key: bytes, compute: Callable[[], Prefix]) -> Prefix:
        """The prefix of exactly these tokens; where another thread computes it now, what that one gets or raises."""
        with self._lock:
            if (kept := self._prefixes.get(key)) is not None:
                self._prefixes.move_to_end(key)
                return kept
            computing = self._computing.get(key)
            mine: Future[Prefix] = Future()
            if computing is None:
                self._computing[key] = mine
        if computing is not None:
            return computing.result()
        try:
            prefix = compute()
        except BaseException as error:
            with self._lock:
                del self._computing[key]
            mine.set_exception(error)
            raise
        self.put(key, prefix)
        with self._lock:
            del self._computing[key]
        mine.set_result(prefix)
        return prefix

    def put(self, key: bytes, prefix: Prefix) -> None:
        """Keep a prefix, and let those go that were not used for the longest time."""
        with self._lock:
            replaced = self._prefixes.get(key)
            self._num_bytes += prefix.num_bytes - (replaced.num_bytes if replaced else 0)
            self._prefixes[key] = prefix
            self._prefixes.move_to_end(key)
            while len(self._prefixes) > 1 and (self._num_bytes > self._max_bytes or len(self._prefixes) > _MAX_KEPT):
                _, dropped = self._prefixes.popitem(last=False)
                self._num_bytes -= dropped.num_bytes
