"""Which waiting sequences make the next engine call: pure, without clock, event loop or engine.

Sequences of close length go together. Where sequences begin with the same tokens, the tokens are computed once and the
sequences continue from there, if that pays. Always the next in turn is among the chosen, so nothing starves.
"""

import heapq
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from plaudit_service.engine.runtime import Costs
from plaudit_service.text.token_ids import Ids, token_key

# Sharing pays from here on, in tokens that need not be computed: the prefix is a call of its own, and batches become
# smaller (docs/development/decisions/serving.md has the figures).
_MIN_SAVED_TOKENS = 64
_MIN_SAVED_SHARE = 0.1
# Shorter common beginnings are chance: BOS, a role, the first word.
_MIN_PREFIX_TOKENS = 16
# How many sequences one plan may put before the next in turn.
_MAX_GROUP = 64
# How many sequences, longer and shorter, are looked at to find the mates of one.
_MAX_NEIGHBOURS = 32


class Waiting(Protocol):
    """What the backlog holds. The smallest `turn` goes first, then the smallest `arrival`, then the longest sequence.

    `arrival` numbers grow, and the sequences of one request have the same. `fairness` has the turns.
    """

    @property
    def client(self) -> str: ...  # noqa: D102
    @property
    def turn(self) -> int: ...  # noqa: D102
    @property
    def arrival(self) -> int: ...  # noqa: D102
    @property
    def token_ids(self) -> Ids: ...  # noqa: D102


T = TypeVar("T", bound=Waiting)


@dataclass(frozen=True, eq=False)
class Batch(Generic[T]):
    """One engine call: sequences, and how many first tokens of all of them are computed only once.

    The longest come first, but in lists, which are in turn.
    """

    sequences: Sequence[T]
    num_prefix_tokens: int = 0

    @property
    def turn(self) -> int:
        """The first turn of its sequences."""
        return min(entry.turn for entry in self.sequences)

    def yields_to(self, entry: T) -> bool:
        """Whether a waiting sequence goes before all of these: it is another client's, and its turn comes first."""
        return entry.turn < self.turn and all(own.client != entry.client for own in self.sequences)


class Backlog(Generic[T]):
    """The sequences that wait for one engine.

    Args:
        costs: Of the device that computes.
        longest_kept: Number of first tokens of a sequence (given as `token_key`) whose computation the engine kept;
            None: the engine cannot continue from a prefix.
    """

    def __init__(self, costs: Costs, longest_kept: Callable[[bytes], int] | None = None) -> None:
        self.num_tokens = 0
        self._costs = costs
        self._longest_kept = longest_kept
        self._entries: dict[int, T] = {}
        self._numbers: dict[T, int] = {}
        self._next_number = 0
        # A heap of (turn, arrival, -length, number); what was taken out stays until it is on top.
        self._by_turn: list[tuple[int, int, int, int]] = []
        # Sorted (length, -number), read from the end: of one length, the oldest first.
        self._by_length: list[tuple[int, int]] = []
        # Sorted (token_key, number).
        self._by_tokens: list[tuple[bytes, int]] = []
        # The rest of a group that was begun.
        self._plan: deque[Batch[T]] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entry: object) -> bool:
        return entry in self._numbers

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries.values())

    def add(self, entry: T) -> None:
        """Put a sequence in."""
        number, length = self._next_number, len(entry.token_ids)
        self._next_number += 1
        self._entries[number], self._numbers[entry] = entry, number
        self.num_tokens += length
        heapq.heappush(self._by_turn, (entry.turn, entry.arrival, -length, number))
        insort(self._by_length, (length, -number))
        if self._longest_kept is not None:
            insort(self._by_tokens, (token_key(entry.token_ids), number))

    def discard(self, entry: T) -> None:
        """Take a sequence out; one that is not in is no error."""
        number = self._numbers.pop(entry, None)
        if number is None:
            return
        del self._entries[number]
        self.num_tokens -= len(entry.token_ids)
        del self._by_length[bisect_left(self._by_length, (len(entry.token_ids), -number))]
        if self._longest_kept is not None:
            del self._by_tokens[bisect_left(self._by_tokens, (token_key(entry.token_ids), number))]

    def take(self, *, max_padded_tokens: int) -> Batch[T] | None:
        """Take the next batch out; None when nothing waits.

        The anchor is the next in turn. Its group shares a prefix, cut into batches that are taken one after the other;
        without a group, it goes with the sequences closest in length. Where rows are not padded, with the next in turn.

        Args:
            max_padded_tokens: Limit of rows x longest row of one call; a sequence over it goes alone.
        """
        anchor = self.next_in_turn()
        if anchor is None:
            return None
        if not self._costs.pads:
            return self._take_list(max_padded_tokens)
        batch = self._next_planned()
        if batch is None or batch.yields_to(anchor):
            self._plan = self._plan_group(anchor, max_padded_tokens)
            batch = self._next_planned() or self._of_close_length(anchor, max_padded_tokens)
        for entry in batch.sequences:
            self.discard(entry)
        return batch

    def next_in_turn(self) -> T | None:
        """The sequence that goes first; None when nothing waits."""
        while self._by_turn and self._by_turn[0][-1] not in self._entries:
            heapq.heappop(self._by_turn)
        return self._entries[self._by_turn[0][-1]] if self._by_turn else None

    def _take_list(self, max_tokens: int) -> Batch[T]:
        """The next in turn, as many as one list holds."""
        taken: list[T] = []
        num_tokens = 0
        while len(taken) != self._costs.max_rows and (entry := self.next_in_turn()) is not None:
            num_tokens += len(entry.token_ids)
            if taken and num_tokens > max_tokens:
                break
            taken.append(entry)
            self.discard(entry)
        return Batch(taken)

    def _next_planned(self) -> Batch[T] | None:
        while self._plan:
            planned = self._plan.popleft()
            if left := [entry for entry in planned.sequences if entry in self._numbers]:
                return Batch(left, planned.num_prefix_tokens)
        return None

    def _of_close_length(self, anchor: T, max_padded_tokens: int) -> Batch[T]:
        """The anchor's batch, where it and its neighbours in length are cut into batches at the least cost."""
        at = bisect_left(self._by_length, (len(anchor.token_ids), -self._numbers[anchor]))
        near = self._by_length[max(0, at - _MAX_NEIGHBOURS) : at + _MAX_NEIGHBOURS + 1][::-1]
        entries = [self._entries[-number] for _, number in near]
        batches = cut([length for length, _ in near], self._costs, max_padded_tokens=max_padded_tokens)
        place = entries.index(anchor)
        start, stop = next(rows for rows in batches if place < rows[1])
        return Batch(entries[start:stop])

    def _plan_group(self, anchor: T, max_padded_tokens: int) -> deque[Batch[T]]:
        """The batches of the sequences that share the anchor's beginning; none where sharing does not pay."""
        if self._longest_kept is None:
            return deque()
        sharers = self._sharers(anchor)
        num_prefix_tokens = best_prefix(
            [(shared, len(entry.token_ids)) for shared, entry in sharers],
            num_kept=self._longest_kept(token_key(anchor.token_ids)),
            multiple=self._costs.row_multiple,
        )
        if num_prefix_tokens == 0:
            return deque()
        group = [entry for shared, entry in sharers if shared >= num_prefix_tokens]
        group.sort(key=lambda entry: -len(entry.token_ids))
        attended = num_prefix_tokens * (1 - self._costs.prefix_token)
        costs = [len(entry.token_ids) - attended for entry in group]
        batches = [
            Batch(group[start:stop], num_prefix_tokens)
            for start, stop in cut(costs, self._costs, max_padded_tokens=max_padded_tokens)
        ]
        return deque(sorted(batches, key=lambda batch: anchor not in batch.sequences))

    def _sharers(self, anchor: T) -> list[tuple[int, T]]:
        """Sequences that may share with the anchor, itself included, each with the most tokens that it could share.

        A prefix is always shorter than its sequences: the last token of each is what is scored.
        """
        at = bisect_left(self._by_tokens, (token_key(anchor.token_ids), self._numbers[anchor]))
        longest = len(anchor.token_ids) - 1
        found = [(longest, anchor)]
        for step in (-1, 1):
            other, shared = at + step, longest
            while 0 <= other < len(self._by_tokens) and len(found) < _MAX_GROUP:
                entry = self._entries[self._by_tokens[other][1]]
                shared = min(shared, num_common_tokens(anchor.token_ids, entry.token_ids))  # falls with the distance
                if shared < _MIN_PREFIX_TOKENS:
                    break
                found.append((min(shared, len(entry.token_ids) - 1), entry))
                other += step
        return found


def num_common_tokens(first: Ids, second: Ids) -> int:
    """How many tokens two sequences have in common at their beginning."""
    num = min(len(first), len(second))
    differ = np.flatnonzero(first[:num] != second[:num])
    return int(differ[0]) if len(differ) else num


def best_prefix(sharers: Sequence[tuple[int, int]], *, num_kept: int, multiple: int = 1) -> int:
    """How many first tokens to compute once for those sequences that share them; 0 where sharing does not pay.

    Tokens saved by a prefix of P tokens over n sequences: (n - 1) P, or n P where its computation was kept.

    Args:
        sharers: (tokens that it could share with the first one, length) of each sequence; the first is the anchor.
        num_kept: First tokens of the anchor whose computation was kept.
        multiple: What the number has to be a multiple of.
    """
    best, best_saved = 0, 0
    shared_most = {shared for shared, _ in sharers} | {min(num_kept, sharers[0][0])}
    for prefix in {shared // multiple * multiple for shared in shared_most}:
        if prefix < _MIN_PREFIX_TOKENS:
            continue
        lengths = [length for shared, length in sharers if shared >= prefix]
        saved = (len(lengths) - (prefix > num_kept)) * prefix
        if saved >= max(_MIN_SAVED_TOKENS, _MIN_SAVED_SHARE * sum(lengths)) and (saved, prefix) > (best_saved, best):
            best, best_saved = prefix, saved
    return best


def cut(lengths: Sequence[float], costs: Costs, *, max_padded_tokens: int) -> list[tuple[int, int]]:
    """Cut sequences into batches so that all calls together cost the least.

    A call costs rows x longest row, padding included, and as much as some tokens for itself. Dynamic programming over
    the ends of batches, in the order of lengths.

    Args:
        lengths: Length of each sequence in tokens, falling.
        costs: Of the device.
        max_padded_tokens: Limit of rows x longest row; a sequence over it goes alone.

    Returns:
        (start, stop) of each batch in `lengths`, in order.
    """
    least = [0.0] + [float("inf")] * len(lengths)  # of the first n sequences
    starts = [0] * (len(lengths) + 1)  # of the last batch of the first n sequences
    for start, longest in enumerate(lengths):
        before = least[start] + costs.call_tokens
        for stop in range(start + 1, min(len(lengths), start + max(1, int(max_padded_tokens // longest))) + 1):
            cost = before + (stop - start) * longest
            if cost < least[stop]:
                least[stop], starts[stop] = cost, start
    batches = []
    stop = len(lengths)
    while stop > 0:
        batches.append((starts[stop], stop))
        stop = starts[stop]
    return batches[::-1]
