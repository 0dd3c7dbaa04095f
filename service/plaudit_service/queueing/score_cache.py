"""Exact scores of sequences that were computed before, bounded in number. Off by default."""

from collections import OrderedDict
from hashlib import blake2b

from plaudit_service.engine.model import Failure, HeadsAlong, Outcome


class ScoreCache:
    """Raw head values by the bytes of a sequence's ids; the least recently used leave first.

    Values along a sequence are not kept: their number has no bound but that of its tokens.

    Args:
        max_entries: How many are kept; 0: none.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._outcomes: OrderedDict[bytes, Outcome] = OrderedDict()

    def get(self, key: tuple[bytes, bytes]) -> Outcome | None:
        """What was computed for exactly this sequence, None where it is not known."""
        if self._max_entries == 0:
            return None
        digest = _digest(key)
        if digest in self._outcomes:
            self._outcomes.move_to_end(digest)
        return self._outcomes.get(digest)

    def put(self, key: tuple[bytes, bytes], outcome: Outcome) -> None:
        """Remember a score; a failure is computed again."""
        if self._max_entries == 0 or isinstance(outcome, Failure):
            return
        self._outcomes[_digest(key)] = outcome.heads if isinstance(outcome, HeadsAlong) else outcome
        if len(self._outcomes) > self._max_entries:
            self._outcomes.popitem(last=False)

    def clear(self) -> None:
        """Know nothing any more."""
        self._outcomes.clear()


def _digest(key: tuple[bytes, bytes]) -> bytes:
    ids, type_ids = key
    return blake2b(ids, digest_size=32, key=blake2b(type_ids).digest()).digest()
