"""The two clients: `AsyncRewardClient`, and `RewardClient`, which runs one on a thread of its own.

What they send and accept is in `protocol`, how often in `retry`. So the two cannot differ, a deadline ends a call of
either even in the middle of a byte, and the sync one works where an event loop already runs (and blocks it).
"""

import asyncio
import atexit
import concurrent.futures
import math
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, Self, TypeVar

from plaudit_client import protocol, settings
from plaudit_client.errors import PlauditError, UnknownModel
from plaudit_client.exchange import Deadline, Exchange
from plaudit_client.fleet import Call
from plaudit_client.items import ItemLike, normalize_items, num_sequences
from plaudit_client.protocol import AlongWhat, Limits, Options, ScoreRequest, Truncation
from plaudit_client.retry import Timing
from plaudit_client.scores import Scores
from plaudit_client.transport import Transport

_P = ParamSpec("_P")
_T = TypeVar("_T")

_MAX_INFO_BYTES = 16 * 1024 * 1024
# A call over several replicas is not cut into smaller requests than this.
_MIN_SHARE_SEQUENCES = 32


class AsyncRewardClient:
    """Scores items with a remote reward model.

    One client belongs to one event loop. Use it as `async with`, or call `aclose` at the end.

    Args:
        url: Base URL of the service, or of its replicas (a sequence, or separated by commas). Every address behind a
            host name counts as a replica too. A request goes to the healthy replica with the least outstanding work.
            None: PLAUDIT_URL.
        api_key: API key, sent as a bearer token. None: PLAUDIT_API_KEY, or else the first key in PLAUDIT_API_KEYS.
        timeout_s: Time limit of one call, in seconds, including all its requests, waits and retries.
        max_retries: Largest number of retries of one request; None: retry until the time limit.
        max_items_per_request: Sequences per request; None: the limit in the service's /info, or fewer, so that
            every replica gets a share. A group is never split: one replica scores all its completions.
        max_concurrency: Largest number of requests in flight at the same time, over all calls.
        hedge: Send a request that takes twice as long as usual to another, idle replica too, and use the first
            answer; at most 5 % more requests.
        pin: Refuse an answer whose fingerprint or engine differs from that of the client's first answer.
        transport: Replaces the network in tests; see `plaudit_client.testing.FakeService`.
        timing: Clock, sleep and random numbers, for tests.

    Raises:
        InvalidArgument: An argument cannot be used.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = settings.DEFAULT_TIMEOUT_S,
        max_retries: int | None = None,
        max_items_per_request: int | None = None,
        max_concurrency: int = settings.DEFAULT_MAX_CONCURRENCY,
        pin: bool = True,
        hedge: bool = False,
        transport: Transport | None = None,
        timing: Timing | None = None,
    ) -> None:
        settings.check_positive("timeout_s", timeout_s)
        settings.check_positive("max_concurrency", max_concurrency)
        if max_items_per_request is not None:
            settings.check_positive("max_items_per_request", max_items_per_request)
        self._timeout_s = timeout_s
        self._max_items_per_request = max_items_per_request
        self._pin = pin
        self._timing = timing or Timing()
        self._limits: Limits | None = None
        # What the first answer to each (model, fingerprint, engine) as the caller gave them was computed by.
        self._pinned: dict[tuple[str | None, str | None, str | None], Scores] = {}
        self._exchange = Exchange(
            settings.resolve_urls(url),
            settings.resolve_headers(api_key),
            transport=transport,
            max_concurrency=max_concurrency,
            max_retries=max_retries,
            hedge=hedge,
            timing=self._timing,
        )

    async def score(
        self,
        items: Sequence[ItemLike],
        *,
        model: str | None = None,
        truncation: Truncation = "error",
        raw: bool = False,
        fingerprint: str | None = None,
        engine: str | None = None,
        along: AlongWhat = "none",
        explain: bool = False,
        timeout_s: float | None = None,
    ) -> Scores:
        """Score items. A sequence that cannot be scored gets no score, but a status that says why.

        Args:
            items: Texts, or dicts in a form of POST /score. An item with n completions gives n scores, in its place.
            model: Name of the model; None if the service has only one.
            truncation: What happens to a text longer than the model's limit: `error` gives the status `too_long`,
                `left` keeps the end of the text, `right` keeps its beginning.
            raw: Return raw scores, without the model's normalization.
            fingerprint: Fingerprint of the reward model that must compute the scores.
            engine: Name of the engine that must compute the scores.
            along: Also return scores along the text: at the end of each step, or at each token.
            explain: Also return the text that was scored.
            timeout_s: Time limit of this call in seconds; None: the client's.

        Returns:
            One score per sequence, in the order of `items`.

        Raises:
            InvalidArgument: An item has a wrong form; nothing was sent.
            PlauditError: The whole call failed; the subclass says why.
        """
        deadline = self._deadline(timeout_s)
        wire_items = normalize_items(items)
        if not wire_items:
            return Scores((), model, fingerprint, engine)
        key = (model, fingerprint, engine)
        pinned = self._pinned.get(key)
        options = Options(
            model=model,
            truncation=truncation,
            raw=raw,
            fingerprint=fingerprint if pinned is None else pinned.fingerprint,
            engine=engine if pinned is None else pinned.engine,
            along=along,
            explain=explain,
        )
        limits = self._share(await self._get_limits(deadline), sum(map(num_sequences, wire_items)))
        requests = list(protocol.split_items(wire_items, options, limits))
        scores = protocol.merge(
            await _all_or_first_error([self._score(request, options, deadline, len(requests)) for request in requests])
        )
        if self._pin:
            # A call that began before the first answer was here knows the pin only now.
            protocol.check_same(scores, self._pinned.setdefault(key, replace(scores, results=())))
        return scores

    async def info(self) -> dict[str, Any]:
        """The service's /info: per model its manifest, fingerprint, measured parity, runtime; and its limits."""
        return protocol.parse_object(await self._fetch_info(self._deadline(None)))

    async def wait_until_ready(self, timeout_s: float = settings.DEFAULT_TIMEOUT_S) -> None:
        """Wait until a replica is ready to score.

        Raises:
            DeadlineExceeded: No replica was ready within `timeout_s` seconds.
        """
        await self._exchange.wait_until_ready(self._deadline(timeout_s))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._exchange.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _deadline(self, timeout_s: float | None) -> Deadline:
        if timeout_s is None:
            timeout_s = self._timeout_s
        settings.check_positive("timeout_s", timeout_s)
        return Deadline.after(timeout_s, self._timing)

    async def _fetch_info(self, deadline: Deadline) -> protocol.Reply:
        return await self._exchange.send(Call("GET", "/info", _MAX_INFO_BYTES), deadline)

    async def _get_limits(self, deadline: Deadline) -> Limits:
        if self._limits is None:
            try:
                limits = protocol.parse_limits(await self._fetch_info(deadline))
            except UnknownModel:  # 404: a service that speaks only /score
                limits = Limits()
            self._limits = limits
        return self._limits

    def _share(self, limits: Limits, total_sequences: int) -> Limits:
        """The limits of one of a call's requests: as told, or so that each replica gets as much."""
        if self._max_items_per_request is not None:
            return replace(limits, max_sequences=self._max_items_per_request)
        share = max(_MIN_SHARE_SEQUENCES, math.ceil(total_sequences / self._exchange.num_replicas))
        return replace(limits, max_sequences=min(limits.max_sequences, share))

    async def _score(self, request: ScoreRequest, options: Options, deadline: Deadline, num_requests: int) -> Scores:
        last_item = request.first_item + request.num_items - 1
        call = Call(
            "POST",
            "/score",
            request.max_answer_bytes,
            body=request.body,
            num_sequences=request.num_sequences,
            about=f" items[{request.first_item}] to items[{last_item}]" if num_requests > 1 else "",
        )
        reply = await self._exchange.send(call, deadline)
        return protocol.parse_answer(reply, request.num_sequences, options)


class RewardClient:
    """Scores items with a remote reward model, from code without async.

    Safe to use from several threads. Use it as `with`, or call `close` at the end. Arguments and errors are those of
    `AsyncRewardClient`.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = settings.DEFAULT_TIMEOUT_S,
        max_retries: int | None = None,
        max_items_per_request: int | None = None,
        max_concurrency: int = settings.DEFAULT_MAX_CONCURRENCY,
        pin: bool = True,
        hedge: bool = False,
        transport: Transport | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._client = AsyncRewardClient(
            url,
            api_key=api_key,
            timeout_s=timeout_s,
            max_retries=max_retries,
            max_items_per_request=max_items_per_request,
            max_concurrency=max_concurrency,
            pin=pin,
            hedge=hedge,
            transport=transport,
            timing=timing,
        )
        self._pid = os.getpid()
        self._closed = False
        self._submission = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="plaudit-client", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # for those who forget: open connections would be complained about at exit

    def score(
        self,
        items: Sequence[ItemLike],
        *,
        model: str | None = None,
        truncation: Truncation = "error",
        raw: bool = False,
        fingerprint: str | None = None,
        engine: str | None = None,
        along: AlongWhat = "none",
        explain: bool = False,
        timeout_s: float | None = None,
    ) -> Scores:
        """Score items; see `AsyncRewardClient.score`."""
        return self._run(
            self._client.score,
            items,
            model=model,
            truncation=truncation,
            raw=raw,
            fingerprint=fingerprint,
            engine=engine,
            along=along,
            explain=explain,
            timeout_s=timeout_s,
        )

    def submit(
        self,
        items: Sequence[ItemLike],
        *,
        model: str | None = None,
        truncation: Truncation = "error",
        raw: bool = False,
        along: AlongWhat = "none",
        timeout_s: float | None = None,
    ) -> "concurrent.futures.Future[Scores]":
        """Start scoring items, without waiting. In an event loop, await the future by `asyncio.wrap_future`."""
        return self._submit(
            self._client.score, items, model=model, truncation=truncation, raw=raw, along=along, timeout_s=timeout_s
        )

    def info(self) -> dict[str, Any]:
        """The service's /info; see `AsyncRewardClient.info`."""
        return self._run(self._client.info)

    def wait_until_ready(self, timeout_s: float = settings.DEFAULT_TIMEOUT_S) -> None:
        """Wait until a replica is ready to score; see `AsyncRewardClient.wait_until_ready`."""
        self._run(self._client.wait_until_ready, timeout_s)

    def close(self) -> None:
        """End the calls that still run in other threads, and close the connections. Further calls do nothing."""
        if os.getpid() != self._pid:
            return
        with self._submission:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.close)
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _submit(
        self, call: Callable[_P, Coroutine[Any, Any, _T]], *args: _P.args, **kwargs: _P.kwargs
    ) -> "concurrent.futures.Future[_T]":
        if os.getpid() != self._pid:  # its thread stayed in the parent, and the call would wait for ever
            raise PlauditError("client: created before this process was forked; create a new client in each process")
        with self._submission:  # else a call could come after `close` has ended all calls, and wait for ever
            if self._closed:
                raise PlauditError("client: already closed; create a new client")
            return asyncio.run_coroutine_threadsafe(call(*args, **kwargs), self._loop)

    def _run(self, call: Callable[_P, Coroutine[Any, Any, _T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        future = self._submit(call, *args, **kwargs)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise PlauditError("client: closed during the call") from None
        finally:
            future.cancel()  # of use only when this thread was interrupted while it waited

    async def _end(self) -> None:
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._client.aclose()


async def _all_or_first_error(coroutines: list[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Await all; when one raises, cancel the others and raise that one's error alone."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
        return [task.result() for task in tasks]
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
    raise first  # outside of `except`, so that it keeps its own cause
