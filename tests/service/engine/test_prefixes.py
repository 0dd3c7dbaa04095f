import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from plaudit_service.engine.engines import Prefix
from plaudit_service.engine.prefixes import PrefixCache
from plaudit_service.text.token_ids import token_key


def key(*ids):
    return token_key(np.array(ids))


def prefix(num_tokens, num_bytes=100):
    return Prefix(num_tokens, {}, num_bytes)


def test_the_longest_kept_beginning_of_a_sequence_is_found_and_it_is_shorter_than_the_sequence():
    cache = PrefixCache(1000)
    for ids in ((1, 2), (1, 2, 3, 4), (9, 9, 9)):
        cache.put(key(*ids), prefix(len(ids)))
    assert [cache.longest(key(*ids)) for ids in ((1, 2, 3, 4, 5), (1, 2, 3, 4), (1, 2), (7,), ())] == [4, 2, 0, 0, 0]


def test_the_bytes_are_bounded_and_the_least_recently_used_leave_first():
    cache = PrefixCache(250)
    cache.put(key(1), prefix(1))
    cache.put(key(2), prefix(1))
    assert cache.get(key(1)) is not None
    cache.put(key(3), prefix(1))
    assert [cache.get(key(number)) is not None for number in (1, 2, 3)] == [True, False, True]


def test_the_latest_prefix_is_kept_whatever_its_size():
    cache = PrefixCache(0)
    cache.put(key(1), prefix(1))
    cache.put(key(2), prefix(1))
    assert [cache.get(key(number)) is not None for number in (1, 2)] == [False, True]


def test_the_number_of_prefixes_is_bounded():
    cache = PrefixCache(10**9)
    for number in range(200):
        cache.put(key(number), prefix(1))
    assert sum(cache.get(key(number)) is not None for number in range(200)) == 64


def compute_at_once(cache, compute):
    """What two threads get of one key, the second of which asks while the first computes."""
    entered, gate = threading.Event(), threading.Event()

    def slow():
        entered.set()
        assert gate.wait(60)
        return compute()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_compute, key(1), slow)
        assert entered.wait(60)
        second = pool.submit(cache.get_or_compute, key(1), lambda: pytest.fail("computed twice"))
        while not cache._computing[key(1)]._condition._waiters and not second.done():
            pass
        gate.set()
        return [future.exception(60) or future.result() for future in (first, second)]


def test_a_prefix_that_another_call_computes_is_awaited_and_not_computed_twice():
    computed = prefix(1)
    first, second = compute_at_once(PrefixCache(1000), lambda: computed)
    assert first is computed
    assert second is computed


def test_who_waits_for_a_prefix_gets_its_error_too_and_the_next_computes_it_again():
    cache = PrefixCache(1000)
    errors = compute_at_once(cache, lambda: 1 / 0)
    assert [type(error) for error in errors] == [ZeroDivisionError] * 2
    computed = prefix(1)
    assert cache.get_or_compute(key(1), lambda: computed) is computed
