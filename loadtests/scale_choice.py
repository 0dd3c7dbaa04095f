"""How well clients that know nothing of each other spread their requests: the client's own choice, without a network.

A simulation by events: each client keeps so many requests in flight and gives each to the replica that
`plaudit_client.replicas` picks; a replica works off its requests one after the other.
"""

import heapq
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from plaudit_client.replicas import Replica, Replicas

_URL = "http://replicas"


@dataclass(frozen=True)
class Spread:
    """What a simulation showed.

    Attributes:
        num_replicas: How many there were.
        num_clients: How many asked.
        of_linear: Requests done, over what the replicas could have done had none ever been idle.
        pick_s: Real seconds of one choice.
    """

    num_replicas: int
    num_clients: int
    of_linear: float
    pick_s: float


def simulate(
    num_replicas: int, num_clients: int, *, in_flight: int, rounds: int, seed: int = 0, jitter: float = 0.5
) -> Spread:
    """Run until each replica could have done `rounds` requests.

    Args:
        num_replicas: Behind one URL.
        num_clients: Each with a view of its own.
        in_flight: Requests of all clients together, for each replica.
        rounds: How long, in mean times of a request.
        seed: Of the times.
        jitter: A request takes 1 - jitter to 1 + jitter, evenly.
    """
    chance = random.Random(seed)
    fleets = [_Fleet(num_replicas) for _ in range(num_clients)]
    queues: list[deque[tuple[int, Replica]]] = [deque() for _ in range(num_replicas)]
    events: list[tuple[float, int]] = []  # when which replica is done with its first request

    def service_time() -> float:
        return chance.uniform(1 - jitter, 1 + jitter)

    def send(client: int, now: float) -> None:
        replica = fleets[client].pick(now)
        place = int(replica.address)
        queues[place].append((client, replica))
        if len(queues[place]) == 1:
            heapq.heappush(events, (now + service_time(), place))

    for _ in range(num_replicas * in_flight // num_clients):
        for client in range(num_clients):
            send(client, 0.0)
    done = 0
    while events and events[0][0] <= rounds:
        now, place = heapq.heappop(events)
        client, replica = queues[place].popleft()
        replica.outstanding -= 1
        done += 1
        if queues[place]:
            heapq.heappush(events, (now + service_time(), place))
        send(client, now)
    picks, seconds = sum(fleet.picks for fleet in fleets), sum(fleet.seconds for fleet in fleets)
    return Spread(num_replicas, num_clients, done / (num_replicas * rounds), seconds / picks)


class _Fleet:
    """One client's view, and how long its choices took."""

    def __init__(self, num_replicas: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._replicas = Replicas([_URL])
        self._replicas.set_addresses(_URL, [str(number) for number in range(num_replicas)])
        self._clock = clock
        self.picks, self.seconds = 0, 0.0

    def pick(self, now: float) -> Replica:
        before = self._clock()
        replica = self._replicas.pick(now)
        self.seconds += self._clock() - before
        self.picks += 1
        assert replica is not None
        replica.outstanding += 1
        return replica
