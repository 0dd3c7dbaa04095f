"""The watch over the servers of one model: each has to give the golden scores before it is asked for others.

It has to again whenever it was lost: when it does not answer, was started anew, or a golden text that is asked now and
then gets another score. Servers are checked and lost one by one; the model is ready while one of them is.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from plaudit_service.engine.remote.fleet import Fleet, Member
from plaudit_service.engine.remote.vllm import Lost
from plaudit_service.errors import Unavailable
from plaudit_service.logs import log
from plaudit_service.metrics import Metrics
from plaudit_service.serving.checks import Checks
from plaudit_service.serving.parity import GoldenCheck
from plaudit_service.serving.pipeline import Pipeline
from plaudit_service.settings import Settings

_POLL_S = 2.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.5, 15.0
# One probe that a busy server does not answer in time says nothing yet.
_MAX_SILENT_PROBES = 2


class FleetWatch:
    """Checks the servers of a model, and watches them.

    Args:
        pipeline: The model's.
        fleet: Its servers.
        checks: Where reports go.
        settings: How often a golden text is asked.
        metrics: Where the state of each server is shown.
        changed: Called where `not_ready` changes.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        fleet: Fleet,
        checks: Checks,
        settings: Settings,
        metrics: Metrics,
        changed: Callable[[], None],
    ) -> None:
        self.alive = True  # what has become of servers, no new process of ours cures
        self.checked = asyncio.Event()
        self._name = pipeline.model.bundle.name
        self._pipeline = pipeline
        self._fleet = fleet
        self._checks = checks
        self._canary_s = settings.engine_canary_s
        self._metrics = metrics
        self._changed = changed
        self._golden = GoldenCheck(pipeline.model)
        self._unchecked = set(fleet.members)
        self._told: dict[Member, str] = {}  # what the log says of those that are lost
        for member in fleet.members:
            metrics.remote_ready.labels(self._name, member.url).set(0)

    @property
    def not_ready(self) -> str | None:
        """Why the model must not be scored with now; None: a server has passed its check."""
        return self._fleet.not_ready

    @property
    def has_ended(self) -> bool:
        """Nothing is computed in this process."""
        return True

    async def run(self) -> None:
        """Check and watch all servers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for member in self._fleet.members:
                group.create_task(self._attend(member))

    async def close(self) -> None:
        """Give up what is in flight, and close the connections."""
        await self._fleet.close()

    async def _attend(self, member: Member) -> None:
        """Check a server until it passes, watch it until it is lost, and again."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._check(member)
                self._has_tried(member)
                pause_s = _FIRST_PAUSE_S
                await self._watch(member)
            except Lost as loss:
                self._lose(member, loss)
            self._has_tried(member)
            await asyncio.sleep(pause_s)
            pause_s = min(_MAX_PAUSE_S, 2 * pause_s)

    async def _check(self, member: Member) -> None:
        """Let a server be asked once it gives the golden scores.

        Raises:
            Lost: it does not.
        """
        await member.connect()
        try:
            check = await self._checks.check(self._pipeline, member, engine=member.url)
        except Unavailable as error:
            await member.wait_until_lost(0)
            raise Lost("down", error.detail) from error
        if check.problem is None or self.not_ready is not None:  # what one of several gets wrong, the model does not
            self._checks.show(self._name, check)
        member.max_abs_diff = None if check.report is None else check.report.max_abs_diff
        if check.problem is not None:
            raise Lost("wrong", check.problem)
        member.admit()
        self._metrics.remote_ready.labels(self._name, member.url).set(1)
        self._pipeline.scheduler.recover()
        self._changed()
        self._told.pop(member, None)
        log("ready", engine=member.url, reason=self.not_ready)

    def _has_tried(self, member: Member) -> None:
        """A server was checked, whatever came of it."""
        self._unchecked.discard(member)
        if not self._unchecked:
            self.checked.set()

    def _lose(self, member: Member, loss: Lost) -> None:
        """Ask a server no more; what waits is refused where it was the last."""
        member.lose(loss)
        self._metrics.remote_ready.labels(self._name, member.url).set(0)
        self._metrics.remote_losses.labels(self._name, member.url, loss.reason).inc()
        self._changed()
        if (not_ready := self.not_ready) is not None:
            self._pipeline.scheduler.fail(Unavailable(f"{not_ready}; try again later"))
        if self._told.get(member) != str(loss):  # not each of many attempts
            self._told[member] = str(loss)
            log("not_ready", level=logging.ERROR, engine=member.url, reason=str(loss), kind=loss.reason)

    async def _watch(self, member: Member) -> None:
        """Probe a server and ask it a golden text now and then.

        Raises:
            Lost: it was lost, by a call, too.
        """
        num_silent, asked = 0, time.monotonic()
        while True:
            await member.wait_until_lost(_POLL_S)
            try:
                await member.server.probe()
                await member.require_same_process()
            except Lost as loss:
                num_silent += 1
                if loss.reason != "hangs" or num_silent >= _MAX_SILENT_PROBES:
                    raise
                continue
            num_silent = 0
            if time.monotonic() - asked >= self._canary_s:
                await self._ask_golden(member)
                asked = time.monotonic()

    async def _ask_golden(self, member: Member) -> None:
        """One golden text after the other, so that all are asked in time.

        Raises:
            Lost: its score is another one now.
        """
        golden = self._golden.next_item()
        try:
            (result,) = await self._pipeline.scored_on(member, [golden])
        except Unavailable as error:
            await member.wait_until_lost(0)
            raise Lost("down", error.detail) from error
        if (why := self._golden.problem(result)) is not None:
            self._pipeline.scheduler.forget()
            raise Lost("wrong", why)
