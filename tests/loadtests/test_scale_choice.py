"""The simulated choice of replicas, with the client's own code."""

import pytest
from scale_choice import simulate


def test_one_replica_that_always_has_work_is_never_idle():
    assert simulate(1, 1, in_flight=2, rounds=50, jitter=0.0).of_linear == 1.0


@pytest.mark.parametrize("num_clients", [1, 4])
def test_replicas_are_hardly_ever_idle_where_each_has_three_requests(num_clients):
    assert simulate(32, num_clients, in_flight=3, rounds=20).of_linear > 0.9


def test_with_one_request_for_each_replica_one_client_that_sees_all_leaves_none_idle_and_several_collide():
    alone = simulate(32, 1, in_flight=1, rounds=20)
    several = simulate(32, 8, in_flight=1, rounds=20)
    assert alone.of_linear > 0.9
    assert several.of_linear < alone.of_linear


def test_a_simulation_is_repeatable():
    first, second = (simulate(8, 2, in_flight=2, rounds=20, seed=4).of_linear for _ in range(2))
    assert first == second
