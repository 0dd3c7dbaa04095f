"""A reward model behind an address, as a scorer."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from plaudit_client import InvalidArgument, RewardClient, Scores
from plaudit_client.protocol import AlongWhat
from plaudit_client.retry import Timing
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.scoring.items import Item


class RemoteScorer:
    """A reward model behind a scoring service; counts the requests that had to be repeated.

    Args:
        address: as in `scorer_urls`: `URL[,URL...][#MODEL]`.
        timeout_s: time limit of one call, retries included, in seconds.
        along: which scores along the texts are requested, as in `RewardClient.score`.

    Attributes:
        retries: number of repeated requests so far.

    Raises:
        ConfigError: the address cannot be used.
    """

    def __init__(self, address: str, *, timeout_s: float, along: AlongWhat = "none") -> None:
        urls, _, model = address.partition("#")
        self.retries = 0
        self._model = model or None
        self._along = along
        try:
            self._client = RewardClient(urls, timeout_s=timeout_s, timing=Timing(sleep=self._wait_and_retry))
        except InvalidArgument as error:
            raise ConfigError(f"address of a reward model {address!r}: {error}") from error

    def __call__(self, items: Sequence[Item]) -> Scores:
        """Scores items, as `RewardClient.score` does."""
        return self._client.score(items, model=self._model, along=self._along)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _wait_and_retry(self, delay_s: float) -> None:
        """The client waits between two attempts and nowhere else that is used here."""
        self.retries += 1
        await asyncio.sleep(delay_s)
