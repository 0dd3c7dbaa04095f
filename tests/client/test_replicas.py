import pytest

from plaudit_client.replicas import Replicas


@pytest.fixture
def replicas():
    replicas = Replicas(["http://a", "http://b"])
    replicas.set_addresses("http://a", ["10.0.0.1", "10.0.0.2"])
    replicas.set_addresses("http://b", ["10.0.0.1"])
    return replicas


def test_every_address_of_every_url_is_a_replica(replicas):
    assert [(one.url, one.address) for one in replicas.all] == [
        ("http://a", "10.0.0.1"),
        ("http://a", "10.0.0.2"),
        ("http://b", "10.0.0.1"),
    ]


def test_the_least_outstanding_is_picked_and_equals_take_turns(replicas):
    first, second, third = replicas.all
    assert [replicas.pick(0.0) for _ in range(4)] == [first, second, third, first]
    first.outstanding, second.outstanding, third.outstanding = 3, 1, 2
    assert replicas.pick(0.0) is second


def test_an_ejected_or_excluded_replica_is_never_picked(replicas):
    first, second, third = replicas.all
    first.ejected = True
    assert {replicas.pick(0.0, exclude={second}) for _ in range(3)} == {third}
    assert replicas.pick(0.0, exclude={second, third}) is None


def test_the_replica_that_failed_last_is_picked_only_without_another(replicas):
    first, second, third = replicas.all
    second.outstanding = third.outstanding = 100
    assert replicas.pick(0.0, avoid=first) is second
    assert replicas.pick(0.0, avoid=first, exclude={second, third}) is first


def test_a_resting_replica_is_picked_only_without_another_until_its_rest_is_over(replicas):
    first, second, third = replicas.all
    first.rests_until = 5.0
    second.outstanding = third.outstanding = 100
    assert replicas.pick(4.0) is second
    assert replicas.pick(4.0, exclude={second, third}) is first
    assert replicas.pick(5.0) is first


def test_an_idle_replica_has_nothing_outstanding(replicas):
    first, second, third = replicas.all
    first.outstanding = 1
    third.rests_until = 5.0
    assert replicas.pick_idle(0.0, exclude=()) is second
    assert replicas.pick_idle(0.0, exclude={second}) is None
    assert replicas.pick_idle(6.0, exclude={second}) is third


def test_new_addresses_keep_what_is_known_of_the_old_ones(replicas):
    first, second, _ = replicas.all
    second.outstanding, second.ejected = 7, True
    replicas.set_addresses("http://a", ["10.0.0.3", "10.0.0.2"])
    assert [one.address for one in replicas.all] == ["10.0.0.3", "10.0.0.2", "10.0.0.1"]
    assert replicas.all[1] is second
    assert first not in replicas.all


def test_there_is_another_replica_only_while_one_is_usable(replicas):
    first, second, third = replicas.all
    assert replicas.has_other(first)
    second.ejected = True
    assert not replicas.has_other(first, exclude={third})
