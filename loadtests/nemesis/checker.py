"""Compares what was seen with the truth; each difference is one sentence. Pure: no processes, no clock."""

from collections import Counter
from collections.abc import Sequence

from nemesis.history import CANCELLED, SCORES, Answered, Call, Counted, Got, Happened, History, Truth, Usage

# What a call may end with instead of scores: each says what happened, and none is a number.
TYPED = frozenset({"ConnectionFailed", "ServiceUnavailable", "DeadlineExceeded", "FingerprintMismatch"})

# Descriptors and threads that a process may hold beyond its base: a connection that is being closed, a helper thread.
_SLACK = 2
# Of memory: what its caches may take, and what an allocator keeps for itself.
_SLACK_BYTES = 96 * 1024 * 1024
# How long after a fault's end the engine may still feel it.
_AFTERWARDS_S = 2.0


def check(history: History, truth: Truth) -> list[str]:
    """Everything that is wrong with a whole run."""
    return [
        *history.broken,
        *(sentence for call in history.calls for sentence in check_call(call, truth, history.faults)),
        *check_numbers(history),
        *check_usage(history.before, history.after),
        *(sentence for answered in history.answered for sentence in check_answered(answered)),
        *(sentence for counted in history.counted for sentence in check_counted(counted)),
    ]


def check_call(call: Call, truth: Truth, faults: Sequence[Happened]) -> list[str]:
    """What is wrong with one call: a score that is not the fault-free one, too many or too few, a wrong failure."""
    where = f"call {call.number} at {call.began_s:.2f} s"
    if call.outcome != SCORES:
        wrong = [] if call.results is None else [f"{where}: {call.outcome}, and yet it has results"]
        if call.outcome not in TYPED | {CANCELLED}:
            wrong.append(f"{where}: {call.outcome}: {call.detail}")
        return wrong
    expected = [got for item in call.items for got in truth[call.question][item]]
    results = call.results or ()
    if len(results) != len(expected):
        return [f"{where}: {len(results)} results for {len(expected)} sequences"]
    excused = _excused(call, faults)
    return [
        f"{where}, sequence {place} ({call.question.model}): {_say(got)}, without faults {_say(right)}"
        for place, (got, right) in enumerate(zip(results, expected, strict=True))
        if got != right and not (got.status in excused and got.score is None)
    ]


def _excused(call: Call, faults: Sequence[Happened]) -> set[str]:
    """Statuses that a sequence of this call may have although it can be scored."""
    expired = {"expired"} if call.is_short_of_time else set()
    scarce = any(
        fault.what == "memory" and fault.began_s <= call.ended_s and call.began_s <= fault.ended_s + _AFTERWARDS_S
        for fault in faults
    )
    return expired | ({"failed"} if scarce else set())


def _say(got: Got) -> str:
    return got.status if got.score is None else f"{float.fromhex(got.score)!r}"


def check_numbers(history: History) -> list[str]:
    """Whether each call that was begun ended, and ended once."""
    ended = Counter(call.number for call in history.calls)
    lost = sorted(set(range(history.begun)) - ended.keys())
    twice = sorted(number for number, count in ended.items() if count > 1)
    return [f"call {number} never ended" for number in lost] + [f"call {number} ended twice" for number in twice]


def check_usage(before: dict[str, Usage], after: dict[str, Usage]) -> list[str]:
    """Whether processes hold what they held before, but for some slack."""
    wrong: list[str] = []
    for name in sorted(before.keys() & after.keys()):
        base, end = before[name], after[name]
        limits = (
            ("descriptors", end.descriptors, base.descriptors, _SLACK),
            ("threads", end.threads, base.threads, _SLACK),
            ("child processes", end.children, base.children, 0),
            ("bytes of memory", end.resident_bytes, base.resident_bytes, _SLACK_BYTES),
        )
        wrong += [
            f"{name}: {now} {what} after the load, {then} before it, {slack} more are allowed"
            for what, now, then, slack in limits
            if now > then + slack
        ]
    return wrong


def check_answered(answered: Answered) -> list[str]:
    """Whether a replica counted at least what arrived of it."""
    wrong = []
    if answered.requests < answered.requests_received:
        wrong.append(
            f"{answered.replica}: counted {answered.requests} requests under faults, and {answered.requests_received} "
            "answers arrived"
        )
    for status, received in sorted(answered.sequences_received.items()):
        counted = answered.sequences.get(status, 0)
        if counted < received:
            wrong.append(
                f"{answered.replica}: counted {counted} sequences as {status} under faults, and {received} arrived"
            )
    return wrong


def check_counted(counted: Counted) -> list[str]:
    """Whether a replica's counters add up with what was asked of it."""
    wrong = []
    if counted.requests != counted.requests_asked:
        wrong.append(f"{counted.replica}: counted {counted.requests} requests, {counted.requests_asked} were asked")
    if counted.sequences != counted.sequences_got:
        told, got = dict(counted.sequences), dict(counted.sequences_got)
        wrong.append(f"{counted.replica}: counted sequences {told}, the client got {got}")
    if counted.left_in_queue:
        wrong.append(f"{counted.replica}: {counted.left_in_queue} sequences in the queue although nobody asks")
    return wrong
