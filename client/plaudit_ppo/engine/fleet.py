"""Several engines asked from code without async, over an event loop in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from plaudit_ppo.engine.vllm import Connection, Engine

_T = TypeVar("_T")


class Fleet:
    """Engines, each of which is watched while the block of `connected` lasts.

    Attributes:
        engines: in the order of their addresses.
    """

    def __init__(self, engines: Sequence[Engine], loop: asyncio.AbstractEventLoop) -> None:
        self.engines = engines
        self._loop = loop

    @property
    def retries(self) -> int:
        """Requests that were sent a second time."""
        return sum(engine.retries for engine in self.engines)

    def start(self, call: Coroutine[Any, Any, _T]) -> "Future[_T]":
        """Begins a call."""
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def ask_all(self, ask: Callable[[Engine], Coroutine[Any, Any, _T]]) -> dict[str, _T]:
        """What every engine answers, by its address; all are asked at once."""
        answers = results([self.start(ask(engine)) for engine in self.engines])
        return {engine.url: answer for engine, answer in zip(self.engines, answers, strict=True)}


def results(calls: "Sequence[Future[_T]]") -> list[_T]:
    """What calls return, in order; where one raises, its exception, without waiting for the others."""
    done, _ = wait(calls, return_when=FIRST_EXCEPTION)
    for call in done:
        call.result()
    return [call.result() for call in calls]


@contextmanager
def connected(urls: Sequence[str], connection: Connection) -> Iterator[Fleet]:
    """Yields the engines of some addresses; what they still do when the block ends is given up."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="plaudit-ppo-engines", daemon=True)
    thread.start()

    def run(call: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(call, loop).result()

    try:
        engines = run(_open(urls, connection))
        try:
            yield Fleet(engines, loop)
        finally:
            run(_close(engines))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _open(urls: Sequence[str], connection: Connection) -> list[Engine]:
    return [Engine(url, connection) for url in urls]  # here, where there is a loop for them to run in


async def _close(engines: Sequence[Engine]) -> None:
    """Cancels what still runs, and closes the connections."""
    calls = asyncio.all_tasks() - {asyncio.current_task()}
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    for engine in engines:
        await engine.close()
