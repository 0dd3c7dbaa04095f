import numpy as np

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
