import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_service.queueing.fairness import Clients, room


def test_a_clients_sequences_start_one_after_the_other():
    clients = Clients()
    turns = []
    for num_tokens in (10, 5, 1):
        turns.append(clients.next_turn("a"))
        clients.add("a", turns[-1], num_tokens)
    assert turns == [0, 10, 15]
    assert clients.in_hand("a") == (3, 16)


def test_a_newcomer_starts_now_however_much_another_has_queued():
    clients = Clients()
    clients.add("a", 0, 1_000_000)
    clients.reach(300)
    assert clients.next_turn("b") == 300
    assert clients.next_turn("a") == 1_000_000


def test_what_a_client_cancelled_is_not_held_against_it():
    clients = Clients()
    clients.add("a", 0, 1000)
    clients.remove("a", 1000)
    assert clients.next_turn("a") == 0
    assert len(clients) == 0


def test_time_does_not_go_back():
    clients = Clients()
    clients.reach(50)
    clients.reach(20)
    assert clients.next_turn("a") == 50


def test_of_each_other_client_no_more_is_served_before_than_of_ones_own():
    clients = Clients()
    for client, num_tokens in (("a", 1000), ("b", 30), ("c", 5)):
        clients.add(client, 0, num_tokens)
    assert clients.num_tokens_before("c", 20) == 5 + 25 + 25
    assert clients.num_tokens_before("new", 20) == 20 + 20 + 5
    assert clients.num_tokens_before("a", 0) == 1000 + 30 + 5


@pytest.mark.parametrize(
    ("limit", "queued", "own", "expected"), [(100, 0, 0, 80), (100, 80, 80, 0), (100, 80, 0, 16), (100, 100, 0, 0)]
)
def test_a_client_may_fill_four_times_the_room_that_it_leaves(limit, queued, own, expected):
    assert room(limit, queued, own) == expected


@given(st.integers(1, 10_000), st.lists(st.sampled_from("abcd"), max_size=40))
def test_some_room_is_left_for_a_newcomer_whoever_fills_the_queue(limit, clients):
    held = dict.fromkeys("abcd", 0)
    for client in clients:
        held[client] += room(limit, sum(held.values()), held[client])
    assert sum(held.values()) <= limit
    assert room(limit, sum(held.values()), 0) > 0 or limit < 5**4
