"""The pure parts of `make chaos`: what is drawn, what the checker calls wrong, how a schedule is shortened."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nemesis.checker import check, check_answered, check_call, check_counted, check_numbers, check_usage
from nemesis.history import CANCELLED, SCORES, Answered, Call, Counted, Got, Happened, History, Question, Usage
from nemesis.schedule import LANES, NEEDS_ENGINE, NEEDS_ROOT, Fault, draw, from_json, to_json
from nemesis.shrink import shrink

ASKED = Question("helpful", "error")
ONE, TWO, THREE = (Got.of("ok", score, None) for score in (1.0, 2.0, 3.0))
TOO_LONG = Got.of("too_long", None, None)
# Item 1 is a group of two, item 2 has no score.
TRUTH = {ASKED: ((ONE,), (TWO, THREE), (TOO_LONG,))}


def call(*results, items=(0, 1, 2), outcome=SCORES, **fields):
    got = results if outcome == SCORES else None
    return Call(fields.pop("number", 0), ASKED, items, 10.0, 11.0, outcome, got, **fields)


def test_a_seed_draws_the_same_faults_again_and_another_seed_others():
    assert draw(3, 300.0) == draw(3, 300.0)
    assert draw(3, 300.0) != draw(4, 300.0)


@given(st.integers(0, 1000), st.floats(10.0, 600.0))
def test_faults_of_one_target_come_one_after_the_other_and_end_in_time(seed, seconds):
    ends = dict.fromkeys(LANES, 0.0)
    for fault in draw(seed, seconds):
        assert fault.kind in LANES[fault.target][0]
        assert fault.at_s >= ends[fault.target] - 0.01
        ends[fault.target] = fault.at_s + fault.lasts_s
        assert ends[fault.target] <= seconds + 0.01


def test_every_kind_of_fault_is_drawn_within_a_few_seeds():
    drawn = {(fault.target, fault.kind) for seed in range(20) for fault in draw(seed, 300.0)}
    assert drawn == {(target, kind) for target, (kinds, _) in LANES.items() for kind in kinds}


def test_what_cannot_be_done_is_left_out_and_nothing_else_moves():
    without = draw(1, 300.0, without=NEEDS_ROOT)
    assert set(without) == {fault for fault in draw(1, 300.0) if fault.target != "disk"}


def test_a_run_without_an_engine_has_the_other_faults_of_one_with_it():
    without = draw(1, 300.0, without=NEEDS_ENGINE)
    assert set(draw(1, 300.0)) - set(without) == {fault for fault in draw(1, 300.0) if "engine" in fault.target}
    assert len(draw(1, 300.0)) > len(without)


def test_a_schedule_is_repeated_from_its_file():
    faults = draw(5, 60.0)
    assert from_json(to_json(faults)) == faults


@pytest.mark.parametrize(
    "line",
    [
        "kill",
        '{"at_s": 1.0, "target": "replica 0", "kind": "kill"}',
        '{"at_s": 1.0, "target": "replica 9", "kind": "kill", "lasts_s": 1.0}',
        '{"at_s": 1.0, "target": "trainer", "kind": "html", "lasts_s": 1.0}',
        '{"at_s": -1.0, "target": "trainer", "kind": "kill", "lasts_s": 1.0}',
    ],
)
def test_a_line_that_is_no_fault_is_named(line):
    with pytest.raises(ValueError, match=r"^line 2: "):
        from_json(to_json([Fault(1.0, "trainer", "kill", 1.0)]) + line)


def test_fault_free_bits_are_right():
    assert check_call(call(ONE, TWO, THREE, TOO_LONG), TRUTH, []) == []


def test_a_wrong_order_is_seen():
    first, second = check_call(call(ONE, THREE, TWO, TOO_LONG), TRUTH, [])
    assert first == "call 0 at 10.00 s, sequence 1 (helpful): 3.0, without faults 2.0"
    assert "sequence 2" in second


def test_the_last_bit_of_a_score_is_seen_and_so_are_those_of_its_heads():
    near = Got.of("ok", 1.0000000000000002, None)
    assert len(check_call(call(near, items=(0,)), TRUTH, [])) == 1
    heads = Got.of("ok", 1.0, {"a": 1.0})
    assert len(check_call(call(heads, items=(0,)), TRUTH, [])) == 1


@pytest.mark.parametrize("results", [(ONE, TWO, THREE), (ONE, TWO, THREE, TOO_LONG, ONE), ()])
def test_too_few_and_too_many_results_are_seen(results):
    (wrong,) = check_call(call(*results), TRUTH, [])
    assert wrong.endswith(f"{len(results)} results for 4 sequences")


def test_a_sequence_may_expire_only_where_time_was_short():
    expired = Got.of("expired", None, None)
    assert check_call(call(expired, items=(0,), is_short_of_time=True), TRUTH, []) == []
    assert len(check_call(call(expired, items=(0,)), TRUTH, [])) == 1


def test_a_sequence_may_fail_only_where_memory_was_short():
    failed = Got.of("failed", None, None)
    scarce, long_ago = Happened(9.0, 10.5, "replica 1", "memory"), Happened(1.0, 7.0, "replica 1", "memory")
    assert check_call(call(failed, items=(0,)), TRUTH, [scarce]) == []
    assert len(check_call(call(failed, items=(0,)), TRUTH, [long_ago])) == 1
    assert len(check_call(call(failed, items=(0,)), TRUTH, [])) == 1


@pytest.mark.parametrize("outcome", ["DeadlineExceeded", "ConnectionFailed", "ServiceUnavailable", CANCELLED])
def test_a_typed_failure_is_allowed(outcome):
    assert check_call(call(outcome=outcome), TRUTH, []) == []


@pytest.mark.parametrize("outcome", ["InvalidAnswer", "InvalidRequest", "FingerprintChanged", "KeyError"])
def test_any_other_end_of_a_call_is_not(outcome):
    assert check_call(call(outcome=outcome, detail="why"), TRUTH, []) == [f"call 0 at 10.00 s: {outcome}: why"]


def test_a_result_of_a_call_that_was_cancelled_is_seen():
    cancelled = Call(0, ASKED, (0,), 10.0, 11.0, CANCELLED, (ONE,))
    assert check_call(cancelled, TRUTH, []) == ["call 0 at 10.00 s: cancelled, and yet it has results"]


def test_a_call_that_never_ended_or_ended_twice_is_seen():
    calls = [call(ONE, items=(0,), number=number) for number in (0, 2, 2)]
    assert check_numbers(History(begun=4, calls=calls)) == [
        "call 1 never ended",
        "call 3 never ended",
        "call 2 ended twice",
    ]


BASE = Usage(descriptors=20, threads=8, children=1, resident_bytes=100_000_000)


@pytest.mark.parametrize(
    ("end", "what"),
    [
        (Usage(23, 8, 1, 100_000_000), "23 descriptors after the load, 20 before it"),
        (Usage(20, 11, 1, 100_000_000), "11 threads after"),
        (Usage(20, 8, 2, 100_000_000), "2 child processes after"),
        (Usage(20, 8, 1, 250_000_000), "250000000 bytes of memory after"),
    ],
)
def test_what_is_not_given_back_is_seen(end, what):
    (wrong,) = check_usage({"replica 0": BASE}, {"replica 0": end})
    assert wrong.startswith(f"replica 0: {what}")


def test_what_was_given_back_is_right():
    assert check_usage({"replica 0": BASE}, {"replica 0": Usage(22, 9, 0, 150_000_000)}) == []


def test_counters_that_do_not_add_up_are_seen():
    right = Counted("replica 0", 3, 3, {"ok": 5}, {"ok": 5})
    assert check_counted(right) == []
    wrong = Counted("replica 0", 2, 3, {"ok": 5}, {"ok": 4, "empty": 1}, left_in_queue=1)
    assert check_counted(wrong) == [
        "replica 0: counted 2 requests, 3 were asked",
        "replica 0: counted sequences {'ok': 5}, the client got {'ok': 4, 'empty': 1}",
        "replica 0: 1 sequences in the queue although nobody asks",
    ]


def test_a_replica_may_have_counted_more_than_arrived_under_faults_and_never_less():
    assert check_answered(Answered("replica 0", 9, 7, {"ok": 50, "empty": 2}, {"ok": 50})) == []
    assert check_answered(Answered("replica 0", 6, 7, {"ok": 49}, {"ok": 50, "empty": 1})) == [
        "replica 0: counted 6 requests under faults, and 7 answers arrived",
        "replica 0: counted 0 sequences as empty under faults, and 1 arrived",
        "replica 0: counted 49 sequences as ok under faults, and 50 arrived",
    ]


def test_a_whole_run_is_judged_by_all_of_it():
    history = History(begun=2, calls=[call(TWO, items=(0,))], broken=["PPO run-0: exit code 2: why"])
    history.before, history.after = {"replica 0": BASE}, {"replica 0": Usage(99, 8, 1, 100_000_000)}
    history.counted = [Counted("replica 0", 1, 2, {}, {})]
    history.answered = [Answered("replica 0", 1, 2, {}, {})]
    assert len(check(history, TRUTH)) == 6


def test_the_shortest_schedule_that_still_fails_is_found():
    faults = list(range(40))
    shortest, attempts = shrink(faults, lambda left: {7, 31} <= set(left), max_attempts=200)
    assert list(shortest) == [7, 31]
    assert attempts < 60


def test_where_no_fault_is_needed_the_empty_schedule_is_found_at_once():
    assert shrink(list(range(40)), lambda left: True, max_attempts=8) == ([], 1)


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(0, 40))
def test_what_is_left_still_fails_however_few_runs_are_allowed(seed, size, max_attempts):
    chance = random.Random(seed)
    needed = set(chance.sample(range(size), chance.randint(1, size)))
    shortest, attempts = shrink(list(range(size)), lambda left: needed <= set(left), max_attempts)
    assert needed <= set(shortest)
    assert attempts <= max(1, max_attempts)
