"""SIGTERM ends a run where nothing is lost.

Also of process 1, to which the kernel gives no signal that it has no handler for.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM has ended the run; the message says where it can go on."""


class Termination:
    """The wish that the run ends, and where it may be granted: at once, but for what runs inside `deferred`."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def listen(self) -> "Termination":
        """From now on SIGTERM is such a wish; for the main thread of a command."""
        signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut short what the first began
            raise Terminated

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `requested`; who opens this looks at it."""
        with self._switched(deferred=True):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside `deferred`, a part that may be left in the middle.

        Raises:
            Terminated: a signal comes, or has come.
        """
        with self._switched(deferred=False):
            if self.requested:
                raise Terminated
            yield

    @contextmanager
    def _switched(self, *, deferred: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, deferred
        try:
            yield
        finally:
            self._deferred = before
