"""What bodies may hold while they are read."""

import pytest

from plaudit_service.errors import QueueFull, TooLarge
from plaudit_service.http.receiving import Room


def test_who_shares_with_nobody_may_fill_the_room():
    room = Room(100)
    with room.share("") as share, room.share("") as other:
        share.grow(60)
        share.grow(40)
        with pytest.raises(QueueFull, match="100 bytes of requests are being read, limit 100; try again later"):
            other.grow(1)
        with pytest.raises(TooLarge, match="the request needs 101 bytes to be read, limit 100; split it"):
            other.grow(101)
        share.release()
        other.grow(100)


def test_a_client_leaves_room_for_others_and_gives_back_what_it_took():
    room = Room(100)
    with room.share("trainer") as first, room.share("trainer") as second, room.share("person") as person:
        with pytest.raises(TooLarge, match="the request needs 81 bytes to be read, limit 80; split it"):
            first.grow(81)
        first.grow(40)
        second.grow(40)
        with pytest.raises(QueueFull, match="80 bytes of requests are being read, limit 100; try again later"):
            second.grow(1)
        person.grow(16)
        first.release()
        second.grow(4)
    with room.share("trainer") as share:
        share.grow(80)
