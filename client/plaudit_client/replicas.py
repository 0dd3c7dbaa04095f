"""Which replica a request goes to: the usable one with the least outstanding work. Pure: no clock, no network."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(eq=False)
class Replica:
    """One address behind one of the URLs.

    Attributes:
        url: Base URL.
        address: Where its host name leads.
        outstanding: Sequences sent and not yet answered.
        ejected: Whether it is out of use until a probe finds it ready.
        rests_until: Until when others are preferred, on the caller's clock.
        picked: Number of the last pick, for turns among equals.
    """

    url: str
    address: str
    outstanding: int = 0
    ejected: bool = False
    rests_until: float = 0.0
    picked: int = 0


class Replicas:
    """All replicas of a service.

    Args:
        urls: Base URLs; no replica is known before `set_addresses`.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._by_url: dict[str, Mapping[str, Replica]] = {url: {} for url in urls}
        self._picks = 0

    @property
    def urls(self) -> Sequence[str]:
        """The base URLs."""
        return list(self._by_url)

    @property
    def all(self) -> Sequence[Replica]:
        """Those that are known now, ejected ones too."""
        return [replica for replicas in self._by_url.values() for replica in replicas.values()]

    def set_addresses(self, url: str, addresses: Sequence[str]) -> None:
        """Take over where a URL leads now; what is known of an address that stays is kept."""
        known = self._by_url[url]
        self._by_url[url] = {address: known.get(address) or Replica(url, address) for address in addresses}

    def pick(self, now: float, *, exclude: Collection[Replica] = (), avoid: Replica | None = None) -> Replica | None:
        """The replica for the next request, or None where none is usable.

        Args:
            now: On the clock of `rests_until`.
            exclude: Never these.
            avoid: This one only if there is no other.
        """
        usable = self._usable(exclude)
        if not usable:
            return None
        replica = min(usable, key=lambda one: (one is avoid, one.rests_until > now, one.outstanding, one.picked))
        self._picks += 1
        replica.picked = self._picks
        return replica

    def has_other(self, than: Replica, exclude: Collection[Replica] = ()) -> bool:
        """Whether another replica is usable."""
        return bool(self._usable({than, *exclude}))

    def pick_idle(self, now: float, *, exclude: Collection[Replica]) -> Replica | None:
        """Another replica that has nothing to do, or None."""
        busy = [one for one in self.all if one.outstanding or one.rests_until > now]
        return self.pick(now, exclude={*busy, *exclude})

    def _usable(self, exclude: Collection[Replica]) -> list[Replica]:
        return [one for one in self.all if not (one.ejected or one in exclude)]
