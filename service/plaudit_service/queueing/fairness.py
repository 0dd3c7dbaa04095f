"""Whose turn it is, and how much of the queue each client may fill: pure. Knows neither clock nor token ids.

Turns are those of start-time fair queueing (Goyal, Vin and Cheng 1996, "Start-time fair queueing", section 2): each
client's sequences start one after the other, as if the client were alone, and the earliest start is served first.
Deviation: a client with nothing in hand is forgotten, so that what it cancelled is not held against it.
"""

from dataclasses import dataclass

# A client may fill this many times the room that is left then: alone 4/5 of the queue, two clients 4/9 each.
_TIMES_LEFT = 4


@dataclass
class _Account:
    """What one client has in hand, waiting or being computed, and the turn of its next sequence."""

    num_sequences: int = 0
    num_tokens: int = 0
    next_turn: int = 0


class Clients:
    """All clients of one queue with sequences in hand. A turn is a number of tokens that were served before."""

    def __init__(self) -> None:
        self._now = 0
        self._accounts: dict[str, _Account] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def next_turn(self, client: str) -> int:
        """The turn of the next sequence of a client."""
        account = self._accounts.get(client)
        return self._now if account is None else max(self._now, account.next_turn)

    def add(self, client: str, turn: int, num_tokens: int) -> None:
        """Take a sequence of a client in hand."""
        account = self._accounts.setdefault(client, _Account())
        account.num_sequences += 1
        account.num_tokens += num_tokens
        account.next_turn = max(account.next_turn, turn + num_tokens)

    def remove(self, client: str, num_tokens: int) -> None:
        """One of its sequences has ended."""
        account = self._accounts[client]
        account.num_sequences -= 1
        account.num_tokens -= num_tokens
        if account.num_sequences == 0:
            del self._accounts[client]

    def reach(self, turn: int) -> None:
        """What came before this turn was served: nobody who comes later starts before it."""
        self._now = max(self._now, turn)

    def in_hand(self, client: str) -> tuple[int, int]:
        """Sequences and tokens of a client that have not ended."""
        account = self._accounts.get(client, _Account())
        return account.num_sequences, account.num_tokens

    def num_tokens_before(self, client: str, num_tokens: int) -> int:
        """How many tokens are served before so many more of a client, about: of each other one, no more than of it."""
        own = self.in_hand(client)[1]
        others = (account.num_tokens for name, account in self._accounts.items() if name != client)
        return own + sum(min(tokens, own + num_tokens) for tokens in others)


def room(limit: int, queued: int, own: int) -> int:
    """How much more a client may queue, so that there is always some room for others.

    own + more <= 4 · (limit - queued - more): the dynamic threshold of Choudhury and Hahne 1998, "Dynamic queue length
    thresholds for shared-memory packet switches", section 3, with alpha = 4.

    Args:
        limit: What the queue holds.
        queued: What waits, of all clients.
        own: What of it is this client's.
    """
    return max(0, (_TIMES_LEFT * (limit - queued) - own) // (1 + _TIMES_LEFT))
