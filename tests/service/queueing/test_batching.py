from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_service.engine.runtime import CPU_COSTS, Costs
from plaudit_service.queueing.batching import Backlog, best_prefix, cut, num_common_tokens
from plaudit_service.text.token_ids import token_key


def no_prefix_is_kept(_):
    return 0


@dataclass(eq=False)
class Waiting:
    arrival: int
    token_ids: np.ndarray
    client: str = ""
    turn: int = 0


def waiting(*ids, arrival=0, **account):
    return Waiting(arrival, np.array(ids, dtype=np.int64), **account)


def of_length(length, arrival=0, first=0, **account):
    return waiting(*range(first, first + length), arrival=arrival, **account)


def backlog_of(*entries, costs=CPU_COSTS, **options):
    backlog = Backlog(costs, **options)
    for entry in entries:
        backlog.add(entry)
    return backlog


def take_all(backlog, budget):
    batches = []
    while (batch := backlog.take(max_padded_tokens=budget)) is not None:
        batches.append(batch)
    return batches


# A small alphabet makes common beginnings frequent.
sequences = st.builds(
    lambda account, arrival, stem, tail: waiting(*([7] * stem), *tail, arrival=arrival, **account),
    st.fixed_dictionaries({"client": st.sampled_from(["", "a", "b"]), "turn": st.integers(0, 3)}),
    st.integers(0, 5),
    st.sampled_from([0, 1, 16, 40, 200]),
    st.lists(st.integers(0, 2), min_size=1, max_size=40),
)
backlogs = st.lists(sequences, max_size=40)


def test_nothing_waits_nothing_is_taken():
    assert backlog_of().take(max_padded_tokens=100) is None


def test_sequences_of_close_length_go_together_and_the_longest_first():
    entries = [of_length(n) for n in (10, 100, 98, 11)]
    assert backlog_of(*entries).take(max_padded_tokens=200).sequences == [entries[1], entries[2]]


def test_the_oldest_goes_before_longer_and_better_fitting_ones():
    entries = [of_length(90, arrival=7), of_length(90, arrival=7), of_length(20, arrival=3)]
    assert entries[2] in backlog_of(*entries).take(max_padded_tokens=100).sequences


def slow_least_cost(lengths, call_tokens, budget):
    """The least cost of cutting falling lengths into batches, by trying every cut."""
    if not lengths:
        return 0
    return min(
        call_tokens + stop * lengths[0] + slow_least_cost(lengths[stop:], call_tokens, budget)
        for stop in range(1, len(lengths) + 1)
        if stop == 1 or stop * lengths[0] <= budget
    )


@given(
    st.lists(st.integers(1, 200), max_size=9).map(lambda lengths: sorted(lengths, reverse=True)),
    st.sampled_from([0, 16, 256]),
    st.integers(1, 900),
)
def test_sequences_are_cut_where_padding_and_calls_together_cost_the_least(lengths, call_tokens, budget):
    batches = cut(lengths, replace(CPU_COSTS, call_tokens=call_tokens), max_padded_tokens=budget)
    assert [at for start, stop in batches for at in range(start, stop)] == list(range(len(lengths)))
    assert all(stop - start == 1 or (stop - start) * lengths[start] <= budget for start, stop in batches)
    cost = sum(call_tokens + (stop - start) * lengths[start] for start, stop in batches)
    assert cost == slow_least_cost(lengths, call_tokens, budget)


def test_a_sequence_over_the_budget_goes_alone():
    entries = [of_length(500), of_length(499)]
    assert backlog_of(*entries).take(max_padded_tokens=100).sequences == [entries[0]]


def test_a_discarded_sequence_is_not_taken_and_one_that_is_not_in_is_no_error():
    first, second = of_length(10), of_length(12)
    backlog = backlog_of(first, second, longest_kept=no_prefix_is_kept)
    backlog.discard(second)
    backlog.discard(second)
    assert (len(backlog), backlog.num_tokens) == (1, 10)
    assert take_all(backlog, 100)[0].sequences == [first]


def test_a_group_shares_its_prompt_and_its_batches_follow_each_other():
    prompt = range(100, 200)
    group = [waiting(*prompt, *([number] * (10 + number))) for number in range(8)]
    other = of_length(30)
    batches = take_all(backlog_of(*group, other, longest_kept=no_prefix_is_kept), 64)
    assert [batch.num_prefix_tokens for batch in batches[:-1]] == [100] * (len(batches) - 1)
    assert [entry for batch in batches for entry in batch.sequences] == [*reversed(group), other]
    assert len(batches) > 2


def test_the_earliest_turn_goes_before_older_ones():
    entries = [of_length(90, arrival=1, turn=500), of_length(20, arrival=2, client="b", turn=90)]
    assert backlog_of(*entries).take(max_padded_tokens=100).sequences == [entries[1]]


@pytest.mark.parametrize(("client", "turn", "goes_first"), [("b", 0, True), ("b", 5, False), ("a", 0, False)])
def test_the_rest_of_a_group_yields_to_an_earlier_turn_of_another_client_only(client, turn, goes_first):
    group = [waiting(*range(100), number, client="a", turn=1 + number) for number in range(8)]
    backlog = backlog_of(*group, longest_kept=no_prefix_is_kept)
    assert len(backlog.take(max_padded_tokens=32).sequences) < 8
    other = of_length(30, arrival=1, first=500, client=client, turn=turn)
    backlog.add(other)
    assert (backlog.take(max_padded_tokens=32).sequences == [other]) is goes_first


def test_what_left_in_the_middle_of_a_group_is_not_taken():
    group = [waiting(*range(100), number) for number in range(8)]
    backlog = backlog_of(*group, longest_kept=no_prefix_is_kept)
    first = backlog.take(max_padded_tokens=16)
    left = [entry for entry in group if entry not in first.sequences]
    backlog.discard(left[0])
    taken = [entry for batch in take_all(backlog, 16) for entry in batch.sequences]
    assert set(taken) == set(left[1:])


def test_a_prefix_whose_computation_is_kept_is_used_for_one_sequence_alone():
    prompt = waiting(*range(200), 1)
    backlog = backlog_of(prompt, longest_kept=lambda _: 150)
    assert backlog.take(max_padded_tokens=1000).num_prefix_tokens == 150


@pytest.mark.parametrize(
    ("sharers", "num_kept", "expected"),
    [
        ([(99, 100)], 0, 0),  # alone
        ([(100, 150), (100, 160)], 0, 100),  # 100 of 310 tokens saved
        ([(100, 150), (15, 160), (15, 155)], 0, 0),  # common beginnings by chance
        ([(63, 100), (63, 100)], 0, 0),  # 63 tokens do not pay for a call
        ([(64, 100), (64, 100)], 0, 64),
        ([(90, 1000), (90, 1000)], 0, 0),  # 90 of 2,000 are too few
        ([(300, 400), (300, 400), (40, 400), (40, 400), (40, 400)], 0, 300),  # 300 against 4 x 40
        ([(100, 400), (100, 400), (80, 400), (80, 400), (80, 400)], 0, 80),  # 100 against 4 x 80
        ([(149, 150)], 64, 64),  # kept
        ([(149, 150)], 63, 0),
        ([(30, 31)], 200, 0),
    ],
)
def test_sharing_is_chosen_where_it_saves_most_and_pays(sharers, num_kept, expected):
    assert best_prefix(sharers, num_kept=num_kept) == expected


def test_where_rows_are_padded_to_a_multiple_the_prefix_is_one_too():
    assert best_prefix([(100, 150), (100, 160)], num_kept=0, multiple=8) == 96
    assert best_prefix([(149, 150)], num_kept=71, multiple=8) == 64
    assert best_prefix([(71, 100), (71, 100)], num_kept=0, multiple=8) == 64
    assert best_prefix([(63, 100), (63, 100), (63, 100)], num_kept=0, multiple=64) == 0


def test_a_device_with_costly_calls_gets_larger_batches():
    lengths = [40, 30, 20, 10]
    entries = [of_length(length) for length in lengths]
    cheap = Costs(call_tokens=1, prefix_token=0, batch_tokens=0)
    assert [len(batch.sequences) for batch in take_all(backlog_of(*entries, costs=cheap), 1000)] == [1, 1, 1, 1]
    dear = replace(cheap, call_tokens=1000)
    assert [len(batch.sequences) for batch in take_all(backlog_of(*entries, costs=dear), 1000)] == [4]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_common_tokens_and_the_order_of_keys_are_those_of_lists(first, second):
    one, two = np.array(first), np.array(second)
    common = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    assert num_common_tokens(one, two) == (min(len(first), len(second)) if common is None else common)
    assert (token_key(one) < token_key(two)) == (first < second)


@given(backlogs, st.integers(1, 2000), st.booleans())
def test_taking_until_nothing_is_left_takes_every_sequence_once(entries, budget, share):
    backlog = backlog_of(*entries, longest_kept=no_prefix_is_kept if share else None)
    taken = [entry for batch in take_all(backlog, budget) for entry in batch.sequences]
    assert sorted(map(id, taken)) == sorted(map(id, entries))
    assert (len(backlog), backlog.num_tokens) == (0, 0)


@given(backlogs, st.integers(1, 2000), st.booleans())
def test_the_first_batch_fits_the_budget_and_holds_one_whose_turn_is_next(entries, budget, share):
    batch = backlog_of(*entries, longest_kept=no_prefix_is_kept if share else None).take(max_padded_tokens=budget)
    if entries:
        order = {(entry.turn, entry.arrival) for entry in batch.sequences}
        assert min((entry.turn, entry.arrival) for entry in entries) in order
        longest = max(len(entry.token_ids) for entry in batch.sequences) - batch.num_prefix_tokens
        assert len(batch.sequences) == 1 or len(batch.sequences) * longest <= budget


@given(backlogs, st.integers(1, 2000))
def test_a_shared_prefix_is_common_to_its_batch_and_shorter_than_every_sequence(entries, budget):
    for batch in take_all(backlog_of(*entries, longest_kept=no_prefix_is_kept), budget):
        prefix = batch.num_prefix_tokens
        beginnings = {tuple(entry.token_ids[:prefix]) for entry in batch.sequences}
        assert len(beginnings) == 1
        assert all(len(entry.token_ids) > prefix for entry in batch.sequences)
