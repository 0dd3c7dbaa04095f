"""Which faults come when: drawn from a seed, and nothing else. Pure; knows no processes.

Each target has a lane of its own, in which one fault ends before the next begins; lanes overlap as chance has it.
"""

import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

NUM_REPLICAS = 3
# The one that serves the combination, too.
COMBINED = NUM_REPLICAS - 1
# What samples PPO's rollouts, and the connection to it.
ENGINE, ENGINE_LINK = "engine", "engine-link"


@dataclass(frozen=True)
class Kind:
    """How often a fault is drawn in its lane, and how long it lasts, in seconds."""

    weight: int
    shortest_s: float
    longest_s: float


_REPLICA = {
    "kill": Kind(4, 0.0, 4.0),
    "stop": Kind(4, 0.5, 9.0),
    "drain": Kind(3, 0.0, 3.0),
    "descriptors": Kind(2, 1.0, 4.0),
    "memory": Kind(2, 0.5, 3.0),
    "clock": Kind(2, 0.5, 3.0),
}
_OTHER_BUNDLE = {"other-bundle": Kind(2, 1.0, 5.0)}
_LINK = {
    "delay": Kind(3, 1.0, 5.0),
    "cut": Kind(3, 0.5, 3.0),
    "duplicate": Kind(3, 0.5, 3.0),
    "html": Kind(3, 0.5, 3.0),
    "reset": Kind(3, 0.5, 3.0),
    "half-open": Kind(3, 0.5, 7.0),
}
_TRAINER = {
    "kill": Kind(4, 0.0, 1.0),
    "kill-writing": Kind(6, 10.0, 25.0),
    "terminate": Kind(2, 0.0, 1.0),
    "stop": Kind(1, 0.5, 3.0),
}
_ENGINE = {
    "kill": Kind(4, 0.0, 4.0),
    "stop": Kind(3, 0.5, 9.0),
    "drain": Kind(2, 0.0, 3.0),
}
_DISK = {"full": Kind(1, 1.0, 4.0)}

# By target: what may happen to it, and the mean pause between two faults, in seconds. Replica 1 alone gets another
# reward model: were it all of them, a call would rightly fail.
LANES: Mapping[str, tuple[Mapping[str, Kind], float]] = {
    **{f"replica {number}": (_REPLICA | (_OTHER_BUNDLE if number == 1 else {}), 9.0) for number in range(NUM_REPLICAS)},
    **{f"link {number}": (_LINK, 6.0) for number in range(NUM_REPLICAS)},
    "trainer": (_TRAINER, 6.0),
    "disk": (_DISK, 25.0),
    ENGINE: (_ENGINE, 12.0),
    ENGINE_LINK: (_LINK, 9.0),
}
# What cannot be done everywhere, and what is done only where an engine samples PPO's rollouts.
NEEDS_ROOT = frozenset({("disk", "full")})
NEEDS_ENGINE = frozenset((target, kind) for target in (ENGINE, ENGINE_LINK) for kind in LANES[target][0])


@dataclass(frozen=True)
class Fault:
    """One fault: it begins `at_s` seconds after the start and ends `lasts_s` later."""

    at_s: float
    target: str
    kind: str
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.at_s:7.2f} s  {self.target}: {self.kind} for {self.lasts_s:.2f} s"


def draw(seed: int, seconds: float, *, without: Collection[tuple[str, str]] = ()) -> tuple[Fault, ...]:
    """The faults of a run, in order of time.

    Args:
        seed: The same seed gives the same faults.
        seconds: All begin and end within them; a shorter run has the first of a longer one.
        without: Pairs of target and kind that cannot be done here; the others stay as they are.
    """
    faults: list[Fault] = []
    for target, (kinds, pause_s) in LANES.items():
        chance = random.Random(f"{seed}/{target}")
        at_s = chance.expovariate(1 / pause_s)
        while True:
            (kind,) = chance.choices(list(kinds), weights=[each.weight for each in kinds.values()])
            lasts_s = chance.uniform(kinds[kind].shortest_s, kinds[kind].longest_s)
            if at_s + lasts_s >= seconds:
                break
            if (target, kind) not in without:
                faults.append(Fault(round(at_s, 3), target, kind, round(lasts_s, 3)))
            at_s += lasts_s + chance.expovariate(1 / pause_s)
    return tuple(sorted(faults, key=lambda fault: (fault.at_s, fault.target)))


def to_json(faults: Sequence[Fault]) -> str:
    """A schedule as a file, one fault a line."""
    return "".join(json.dumps(asdict(fault)) + "\n" for fault in faults)


def from_json(text: str) -> tuple[Fault, ...]:
    """The schedule of a file.

    Raises:
        ValueError: a line is no fault; says which.
    """
    faults = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            fault = Fault(**json.loads(line))
            known = fault.kind in LANES[fault.target][0] and fault.at_s >= 0 <= fault.lasts_s
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"line {number}: no fault ({type(error).__name__}: {error})") from error
        if not known:
            raise ValueError(f"line {number}: nothing of the kind {fault.kind!r} can happen to {fault.target}")
        faults.append(fault)
    return tuple(faults)
