from hypothesis import given
from hypothesis import strategies as st

from plaudit_service.batching import choose_batch, cut_batches

waiting_lists = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 600)), max_size=60)


def test_nothing_waits_nothing_is_chosen():
    assert choose_batch([], max_padded_tokens=100) == []


def test_sequences_of_close_length_go_together_and_the_longest_first():
    waiting = [(0, 10), (0, 100), (0, 98), (0, 11)]
    assert choose_batch(waiting, max_padded_tokens=200) == [1, 2]


def test_the_oldest_goes_before_longer_and_better_fitting_ones():
    waiting = [(7, 90), (7, 90), (3, 20)]
    assert 2 in choose_batch(waiting, max_padded_tokens=100)


def test_a_batch_grows_towards_the_neighbour_that_is_closer_in_length():
    waiting = [(0, 50), (1, 52), (1, 40)]
    assert choose_batch(waiting, max_padded_tokens=104) == [1, 0]
    waiting = [(0, 50), (1, 60), (1, 49)]
    assert choose_batch(waiting, max_padded_tokens=120) == [0, 2]


def test_a_sequence_over_the_budget_goes_alone():
    assert choose_batch([(0, 500), (0, 499)], max_padded_tokens=100) == [0]


@given(waiting_lists, st.integers(1, 2000))
def test_a_batch_fits_the_budget_and_holds_one_of_the_oldest(waiting, budget):
    batch = choose_batch(waiting, max_padded_tokens=budget)
    assert len(set(batch)) == len(batch)
    if waiting:
        assert min(arrival for arrival, _ in waiting) in {waiting[at][0] for at in batch}
        longest = max(waiting[at][1] for at in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 2000))
def test_cutting_at_once_gives_the_batches_that_taking_one_after_the_other_gives(lengths, budget):
    left = list(range(len(lengths)))
    expected = []
    while left:
        chosen = choose_batch([(0, lengths[at]) for at in left], max_padded_tokens=budget)
        expected.append([left[at] for at in chosen])
        left = [at for at in left if at not in expected[-1]]
    assert cut_batches(lengths, max_padded_tokens=budget) == expected


@given(waiting_lists)
def test_taking_batches_until_none_is_left_computes_every_sequence_once(waiting):
    left = list(enumerate(waiting))
    seen = []
    while left:
        chosen = set(choose_batch([entry for _, entry in left], max_padded_tokens=512))
        seen += [number for at, (number, _) in enumerate(left) if at in chosen]
        left = [entry for at, entry in enumerate(left) if at not in chosen]
    assert sorted(seen) == list(range(len(waiting)))
