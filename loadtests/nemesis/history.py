"""What is seen in a run: values that the checker reads. Knows nothing of how they came about."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

CANCELLED = "cancelled"
SCORES = "scores"


@dataclass(frozen=True)
class Got:
    """One result: its status, and its numbers bit by bit."""

    status: str
    score: str | None
    heads: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, status: str, score: float | None, heads: Mapping[str, float] | None) -> "Got":
        """The same of a result of the client's or the service's."""
        bits = () if heads is None else tuple(sorted((name, value.hex()) for name, value in heads.items()))
        return cls(str(status), None if score is None else score.hex(), bits)


@dataclass(frozen=True)
class Question:
    """What scores depend on: the model, and what becomes of long texts."""

    model: str
    truncation: str


# By question, for each item of the pool: the results of its sequences.
Truth = Mapping[Question, tuple[tuple[Got, ...], ...]]


@dataclass(frozen=True)
class Call:
    """One call of the client and what became of it.

    Attributes:
        number: Of the calls of a run, from 0.
        question: What was asked.
        items: Their places in the pool.
        began_s: Seconds since the start.
        ended_s: Likewise.
        outcome: `scores`, `cancelled`, or the name of the error's class.
        results: One per sequence; None where there are none.
        is_short_of_time: Whether its deadline was short, so that a sequence may expire.
        detail: What the error said.
    """

    number: int
    question: Question
    items: tuple[int, ...]
    began_s: float
    ended_s: float
    outcome: str
    results: tuple[Got, ...] | None = None
    is_short_of_time: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Happened:
    """A fault that was done, or something that the harness did or saw, with its time."""

    began_s: float
    ended_s: float
    target: str
    what: str


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    descriptors: int
    threads: int
    children: int
    resident_bytes: int


@dataclass(frozen=True)
class Counted:
    """What one replica counted, and what was asked of it meanwhile, where nothing disturbed the two.

    Attributes:
        replica: Its name.
        requests: To /score that it counted as answered.
        requests_asked: What the client sent.
        sequences: By status, as it counted them.
        sequences_got: As the client got them.
        left_in_queue: Sequences that still wait or are computed when nobody asks any more.
    """

    replica: str
    requests: int
    requests_asked: int
    sequences: Mapping[str, int]
    sequences_got: Mapping[str, int]
    left_in_queue: int = 0


@dataclass(frozen=True)
class Answered:
    """What one replica counted under faults, since it was started the last time, and what arrived of it at the load.

    It counted more: what PPO asked, and answers that were lost.

    Attributes:
        replica: Its name.
        requests: To /score that it counted as answered.
        requests_received: Whole answers with scores that arrived.
        sequences: By status, as it counted them.
        sequences_received: Results in these answers.
    """

    replica: str
    requests: int
    requests_received: int
    sequences: Mapping[str, int]
    sequences_received: Mapping[str, int]


@dataclass
class History:
    """All of it.

    Attributes:
        begun: Calls that were begun.
        calls: Those that ended, in that order.
        faults: What the nemesis did.
        seen: What else happened: restarts, ends of training processes.
        broken: Sentences about what must not happen, by who saw it.
        before: What processes held before the load, by name.
        after: What they held after it.
        answered: Of each replica, under faults.
        counted: Of each replica, at the end.
        num_sent: Requests that the client sent.
        training: How often a PPO run reached its end, was killed, terminated, and stopped by itself.
    """

    begun: int = 0
    calls: list[Call] = field(default_factory=list)
    faults: list[Happened] = field(default_factory=list)
    seen: list[Happened] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    before: dict[str, Usage] = field(default_factory=dict)
    after: dict[str, Usage] = field(default_factory=dict)
    answered: list[Answered] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    num_sent: int = 0
    training: Counter[str] = field(default_factory=Counter)

    @property
    def num_scored(self) -> int:
        """Sequences with a result."""
        return sum(len(call.results) for call in self.calls if call.results is not None)
