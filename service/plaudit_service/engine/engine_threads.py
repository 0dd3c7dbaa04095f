"""The threads that compute on a device, one for each call at once, and for how long each has been at its present job.

Daemons, unlike the threads of an executor, which are joined at exit: a hung engine must not keep the process alive.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

R = TypeVar("R")

_Job = tuple["Future[Any]", Callable[[int], Any]]

# The lane of a job that has the whole device.
WHOLE = 0


class EngineThreads:
    """Runs jobs in the order in which they came, so many at once.

    A job is told its lane. One that is alone, with nothing behind it, has the whole device: no other begins before it
    ends. Else it has a share: a lane from 1 on that no other job has at the time.

    Args:
        num_calls: Jobs at once.
    """

    def __init__(self, num_calls: int = 1) -> None:
        self.num_calls = num_calls
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._since: dict[int, float] = {}  # when the jobs that run began, by lane
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"engine-{number}", daemon=True)
            for number in range(1, num_calls + 1)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[[int], R]) -> "Future[R]":
        """Run a job after those that were given before have begun; it is called with its lane."""
        future: Future[R] = Future()
        with self._changed:
            self._jobs.append((future, job))
            self._changed.notify()
        return future

    @property
    def num_free(self) -> int:
        """How many more jobs would begin at once."""
        with self._changed:
            if WHOLE in self._since:
                return 0
            return max(0, self.num_calls - len(self._since) - len(self._jobs))

    @property
    def busy_s(self) -> float:
        """For how many seconds the longest of the present jobs has run; 0 when there is none."""
        with self._changed:
            since = min(self._since.values(), default=None)
        return 0.0 if since is None else time.monotonic() - since

    @property
    def has_ended(self) -> bool:
        """Whether nothing is computed any more, nor will be."""
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """End after the jobs that were given, without waiting for them."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _run(self, number: int) -> None:
        while (taken := self._take(number)) is not None:
            lane, future, job = taken
            try:
                result = job(lane)
            except BaseException as error:  # noqa: BLE001  it belongs to the one who waits for the job
                self._end(lane)
                future.set_exception(error)
            else:
                self._end(lane)
                future.set_result(result)

    def _take(self, number: int) -> "tuple[int, Future[Any], Callable[[int], Any]] | None":
        """The next job, and its lane; None at the end."""
        with self._changed:
            while True:
                if WHOLE not in self._since:
                    while self._jobs:
                        future, job = self._jobs.popleft()
                        if future.set_running_or_notify_cancel():
                            is_alone = self.num_calls == 1 or not (self._jobs or self._since)
                            lane = WHOLE if is_alone else number
                            self._since[lane] = time.monotonic()
                            return lane, future, job
                    if self._stopped:
                        return None
                self._changed.wait()

    def _end(self, lane: int) -> None:
        with self._changed:
            del self._since[lane]
            self._changed.notify_all()
