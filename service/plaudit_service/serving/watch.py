"""Whether what computes can be relied on: checked at the start, and watched from then on.

One watch for each that fails as a whole: the device of this process, or the servers of one model (`fleet_watch`).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from plaudit_service.engine.engine_threads import EngineThreads
from plaudit_service.errors import Unavailable
from plaudit_service.logs import log
from plaudit_service.serving.checks import Checks
from plaudit_service.serving.pipeline import Pipeline

CHECKING = "the golden texts are being checked"


class Watch(Protocol):
    """What a service asks of it.

    Attributes:
        alive: False where only a new process can help.
        checked: Set once the golden texts were scored for the first time, or could not be.
    """

    alive: bool
    checked: asyncio.Event

    @property
    def not_ready(self) -> str | None:
        """Why its models must not be scored with now; None: they may."""
        ...

    async def run(self) -> None:
        """Check and watch, until cancelled or nothing can help any more."""
        ...

    async def close(self) -> None:
        """Let go of what computes; `run` was cancelled before."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether nothing is computed any more."""
        ...


class ThreadsWatch:
    """Of the threads of this process: the golden texts once, and how long each call takes.

    Args:
        pipelines: All models that they compute.
        threads: Of the device.
        checks: Where the reports go.
        timeout_s: A call that takes longer hangs.
        changed: Called where `not_ready` changes.
    """

    def __init__(
        self,
        pipelines: Sequence[Pipeline],
        threads: EngineThreads,
        checks: Checks,
        timeout_s: float,
        changed: Callable[[], None],
    ) -> None:
        self.not_ready: str | None = CHECKING
        self.alive = True
        self.checked = asyncio.Event()
        self._pipelines = pipelines
        self._threads = threads
        self._checks = checks
        self._timeout_s = timeout_s
        self._changed = changed

    async def run(self) -> None:
        """Check once, and watch at the same time: the check may hang."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._check())
            group.create_task(self._watch())

    async def close(self) -> None:
        """End the threads after the calls that were given."""
        self._threads.stop()

    @property
    def has_ended(self) -> bool:
        """After `close`, a call of the engine may still run to its end."""
        return self._threads.has_ended

    async def _check(self) -> None:
        try:
            wrong = [why for each in self._pipelines if (why := await self._problem(each)) is not None]
        except Unavailable:  # the watch has said why
            return
        finally:
            self.checked.set()
        self.not_ready = "; ".join(wrong) or None
        self._changed()
        log("not_ready" if wrong else "ready", reason=self.not_ready)

    async def _problem(self, pipeline: Pipeline) -> str | None:
        """What is wrong with the golden scores of a model; None: nothing."""
        check = await self._checks.check(pipeline)
        self._checks.show(pipeline.model.bundle.name, check)
        return check.problem

    async def _watch(self) -> None:
        """Fail liveness when a call of the engine takes longer than any should."""
        while (busy_s := self._threads.busy_s) <= self._timeout_s:  # noqa: ASYNC110  a call that hangs tells nobody
            await asyncio.sleep(min(1.0, self._timeout_s - busy_s + 0.01))
        self.not_ready = f"the engine hangs: one call runs for more than {self._timeout_s:g} s"
        self.alive = False
        self._changed()
        log("engine_hangs", level=logging.ERROR, seconds=busy_s)
        for pipeline in self._pipelines:
            pipeline.scheduler.fail(Unavailable(f"{self.not_ready}; another replica may answer"))
