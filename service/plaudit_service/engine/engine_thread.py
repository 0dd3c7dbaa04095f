"""The one thread that computes on a device, and for how long it has been at its present job.

A daemon, unlike the threads of an executor, which are joined at exit: a hung engine must not keep the process alive.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

R = TypeVar("R")

_Job = tuple["Future[Any]", Callable[[], Any]]


class EngineThread:
    """Runs jobs one after the other, in the order in which they came."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._since: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], R]) -> "Future[R]":
        """Run a job after those that were given before."""
        future: Future[R] = Future()
        self._jobs.put((future, job))
        return future

    @property
    def busy_s(self) -> float:
        """For how many seconds the present job has run; 0 when there is none."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def has_ended(self) -> bool:
        """Whether nothing is computed any more, nor will be."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End after the jobs that were given, without waiting for them."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            future, job = entry
            if not future.set_running_or_notify_cancel():
                continue
            self._since = time.monotonic()
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001  it belongs to the one who waits for the job
                future.set_exception(error)
            finally:
                self._since = None
